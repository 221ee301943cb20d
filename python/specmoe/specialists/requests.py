"""What a query in plain words asks for, as far as its words and its value say it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..notation import Contract, Span, Value, find_value
from .corpora.random_values import GPU_IDS

NAMES = {"hlxl": "hlxl", "lc-t": "lc-t", "ascii": "lc-t", "lc-r": "lc-r", "runic": "lc-r", "lc-b": "lc-b"}
_NAMED = re.compile(rf"(?<![a-z])(from )?(?:the |this )?({'|'.join(NAMES)})(?![a-z])", re.IGNORECASE)
_PARSING = re.compile(r"\b(?:pars|decod|read)", re.IGNORECASE)
_EXPLAINING = re.compile(r"\b(?:expla|descri|what kind)", re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """What a query asks for.

    Attributes:
        span: the value in it, None where there is none.
        source: the value's notation, "" without a value.
        target: the notation that is asked for, "" where none is.
        learned: whether a correction tells what is asked for, and not the query's own words.
    """

    span: Span | None
    source: str
    target: str
    learned: bool = False

    @property
    def value(self) -> Value:
        """The value in the source's notation.

        Raises:
            ValueError: the query has none.
        """
        if self.span is None or self.source not in self.span.readings:
            raise ValueError("request: expected a value in the query, found none")
        return self.span.readings[self.source]


def understand(query: str) -> Request:
    """Returns what a query asks for.

    The value is the longest text that any notation reads. Of two notations that are named, the source is the one behind
    "from", or the first that reads the value. Where one is named it is the target, or the source where something is to
    be parsed or explained; the source is then the first notation that reads the value. What is parsed becomes HLXL.

    Raises:
        ValueError: the query is too long to look for a value.
    """
    span = find_value(query)
    before, after = query, ""
    if span is not None:
        before, after = query[: span.start], query[span.start + len(span.text) :]
    named = [(NAMES[name.lower()], bool(origin)) for origin, name in _NAMED.findall(f"{before}\n{after}")]
    if span is None:
        return Request(None, "", "")
    asks_for_value = not (asks_to_explain(before) or asks_to_explain(after))
    parses = bool(_PARSING.search(before) or _PARSING.search(after))
    names = list(dict.fromkeys(name for name, _ in named))
    origins = [name for name, origin in named if origin and name in span.readings]
    able = [name for name in names if name in span.readings]
    if origins:
        source = origins[0]
    elif len(names) > 1 and able:
        source = able[0]
    elif names and able and (parses or not asks_for_value):
        source = able[0]
    else:
        source = next(iter(span.readings))
    others = [name for name in names if name != source]
    # "Convert 42 to HLXL": the one name is the target, though it reads the text as well.
    target = others[-1] if others else names[0] if names and not origins and not parses else ""
    if not asks_for_value:
        target = ""
    elif not target and parses:
        target = "hlxl"
    return Request(span, source, target)


def in_plain_words(text: str, source: str, target: str) -> str:
    """Returns a query for a conversion as every specialist is trained on it."""
    return f"Convert from {source.upper()} to {target.upper()}: {text}"


def asks_to_explain(prose: str) -> bool:
    """Says whether a value is to be explained, by the words around it."""
    return bool(_EXPLAINING.search(prose))


def has_gpu_contract(value: Value) -> bool:
    """Says whether a value is or holds a contract of 900 to 902."""
    if isinstance(value, Contract):
        return value.id in GPU_IDS or any(map(has_gpu_contract, value.fields.values()))
    if isinstance(value, dict):
        return any(map(has_gpu_contract, value.values()))
    return isinstance(value, list) and any(map(has_gpu_contract, value))
