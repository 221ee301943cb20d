"""A value among other words: `find_value("Convert [1, 2] to LC-R").text` is "[1, 2]"."""

from __future__ import annotations

from dataclasses import dataclass

from . import hlxl, lcb, lcr, lct
from .errors import NotationError
from .parser import TextParser
from .values import Value

# Looking for a value takes a time that grows with the square of the length.
MAX_LENGTH = 4096

_PARSERS: dict[str, type[TextParser]] = {
    "hlxl": hlxl.Parser,
    "lc-t": lct.Parser,
    "lc-r": lcr.Parser,
    "lc-b": lcb.Parser,
}


@dataclass(frozen=True)
class Span:
    """A value in a text.

    Attributes:
        text: how it is written there.
        start: characters before it.
        readings: the value in each notation in which the whole of `text` is one, in the order HLXL, LC-T, LC-R, LC-B.
    """

    text: str
    start: int
    readings: dict[str, Value]


def find_value(text: str) -> Span | None:
    """Returns the longest value in a text, the first of several; None where there is none.

    Raises:
        ValueError: more than `MAX_LENGTH` characters.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(f"notation: expected at most {MAX_LENGTH} characters, got {len(text)}")
    found: dict[tuple[int, int], dict[str, Value]] = {}
    for name, parser in _PARSERS.items():
        for start, end, value in _values(parser, text):
            found.setdefault((start, end), {})[name] = value
    if not found:
        return None
    start, end = max(found, key=lambda place: (place[1] - place[0], -place[0]))
    return Span(text[start:end], start, found[start, end])


def _values(kind: type[TextParser], text: str) -> list[tuple[int, int, Value]]:
    """Returns the places and values that one notation sees, none inside of another."""
    parser = kind(text)
    found = []
    place = 0
    while place < len(text):
        if text[place] not in kind.readers or place and _joined(text[place - 1], text[place]):
            place += 1
            continue
        parser.pos, parser.depth = place, 0
        try:
            value = parser.top()
        except NotationError:
            place += 1
            continue
        if parser.pos < len(text) and _joined(text[parser.pos - 1], text[parser.pos]):
            place += 1
            continue
        found.append((place, parser.pos, value))
        place = parser.pos
    return found


def _joined(left: str, right: str) -> bool:
    """Says whether two characters belong to one word or number."""
    return (left.isalnum() or left in "_-.") and (right.isalnum() or right in "_-")
