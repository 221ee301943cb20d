"""All notations by name, and from one to the other: `convert("[1, 2]", "lc-r")`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import hlxl, lcb, lcb_bytes, lcr, lct
from .errors import AmbiguousNotationError, NotationError, UnknownNotationError
from .values import Value


@dataclass(frozen=True)
class Notation:
    """One way to write values.

    Attributes:
        title: its name in prose.
        parse: text (bytes for the byte form) to value.
        render: value to text (bytes for the byte form).
    """

    title: str
    parse: Callable[[Any], Value]
    render: Callable[[Value], Any]


NOTATIONS: dict[str, Notation] = {
    "hlxl": Notation(hlxl.NAME, hlxl.parse, hlxl.render),
    "lc-t": Notation(lct.NAME, lct.parse, lct.render),
    "lc-r": Notation(lcr.NAME, lcr.parse, lcr.render),
    "lc-r-alchemical": Notation("LC-R (alchemical)", lcr.parse, partial(lcr.render, dialect="alchemical")),
    "lc-b": Notation(lcb.NAME, lcb.parse, lcb.render),
    "lc-b-bytes": Notation(lcb_bytes.NAME, lcb_bytes.parse, lcb_bytes.render),
}
# What a text is tried as, in this order.
TEXT_NOTATIONS = ("hlxl", "lc-t", "lc-r", "lc-b")


def notation_named(name: str) -> Notation:
    """Returns a notation by its name, in lower or upper case.

    Raises:
        UnknownNotationError: no notation has this name.
    """
    found = NOTATIONS.get(name.lower())
    if found is None:
        raise UnknownNotationError(f"notation: expected {', '.join(NOTATIONS)}, got {name!r}")
    return found


def parse(text: str | bytes, notation: str | None = None) -> Value:
    """Returns the value of a text.

    Args:
        text: a text, or the bytes of LC-B's byte form.
        notation: one of `NOTATIONS`; None finds it out.

    Raises:
        NotationError: with the place, what was expected there and what was found.
        AmbiguousNotationError: without `notation`, a text that means different values in different notations.
        UnknownNotationError: no notation has this name.
    """
    if notation is None:
        return detect(text)[1]
    wanted = notation_named(notation)
    if isinstance(text, str) == (wanted.title == lcb_bytes.NAME):
        raise NotationError(wanted.title, "str" if isinstance(text, bytes) else "bytes", type(text).__name__)
    return wanted.parse(text)


def render(value: Value, notation: str) -> str | bytes:
    """Returns a value's text in a notation, bytes in LC-B's byte form.

    Raises:
        NotationError: a value that has no text: NaN, an infinity, another type, more than 64 levels.
        UnknownNotationError: no notation has this name.
    """
    return notation_named(notation).render(value)


def convert(text: str | bytes, to: str, source: str | None = None) -> str | bytes:
    """Returns a text in another notation, exactly the same value.

    Args:
        text: a text, or the bytes of LC-B's byte form.
        to: one of `NOTATIONS`.
        source: the notation of `text`; None finds it out.

    Raises:
        NotationError: with the place, what was expected there and what was found.
        AmbiguousNotationError: without `source`, a text that means different values in different notations.
        UnknownNotationError: no notation has this name.
    """
    wanted = notation_named(to)
    return wanted.render(parse(text, source))


def detect(text: str | bytes) -> tuple[str, Value]:
    """Returns the first notation that a text is of, and its value there.

    Raises:
        NotationError: it is of none; the error is of the notation that reads farthest.
        AmbiguousNotationError: it means different values in different notations.
    """
    if isinstance(text, bytes):
        return "lc-b-bytes", lcb_bytes.parse(text)
    found, errors = readings(text)
    if not found:
        farthest = max(errors, key=lambda error: error.offset or 0)
        raise farthest
    if len({lcb_bytes.render(value) for value in found.values()}) > 1:
        means = ", ".join(f"{NOTATIONS[name].title}: {_shortened(hlxl.render(value))}" for name, value in found.items())
        raise AmbiguousNotationError(f"notation: expected the source to be named, since values differ. {means}")
    name = next(iter(found))
    return name, found[name]


def readings(text: str) -> tuple[dict[str, Value], list[NotationError]]:
    """Returns the value of a text in each text notation that it is of, and the errors of the others."""
    found: dict[str, Value] = {}
    errors: list[NotationError] = []
    for name in TEXT_NOTATIONS:
        try:
            found[name] = NOTATIONS[name].parse(text)
        except NotationError as error:
            errors.append(error)
    return found, errors


def same(a: Value, b: Value) -> bool:
    """Says whether two values are the same; unlike ==, this tells 1, 1.0 and True apart.

    Raises:
        NotationError: one of them has no notation.
    """
    return lcb_bytes.render(a) == lcb_bytes.render(b)


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."
