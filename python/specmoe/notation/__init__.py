"""The HLX notations, exactly translated into each other: `convert("[1, 2, 3]", to="lc-r")`.

docs/notation.md has the grammars.
"""

from __future__ import annotations

from .convert import NOTATIONS, convert, detect, parse, readings, render, same
from .errors import AmbiguousNotationError, NotationError, UnknownNotationError
from .search import Span, find_value
from .values import CONTRACT_NAMES, MAX_DEPTH, Contract, Handle, Value

__all__ = [
    "CONTRACT_NAMES",
    "MAX_DEPTH",
    "NOTATIONS",
    "AmbiguousNotationError",
    "Contract",
    "Handle",
    "NotationError",
    "Span",
    "UnknownNotationError",
    "Value",
    "convert",
    "detect",
    "find_value",
    "parse",
    "readings",
    "render",
    "same",
]
