"""Random values from a seed, made fast enough for a million."""

from __future__ import annotations

import random
import struct
from typing import Any

from specmoe.notation import Contract, Handle, Value

_WORDS = ("x", "C", "moon", "null", "T", "h_ast", "search", "true", "x_1", "Zebra")
_STRINGS = (
    "",
    "hi",
    "true",
    "0x2a",
    "[T]",
    "&h_a",
    "#64",
    'a "b"',
    "back\\slash",
    "line\nbreak",
    "tab\t",
    "\u27c1a",
    "é\x00\x7f",
)
_GLYPHS = 'abc XYZ019_-"\\\n\t\r,:|={}[]@&#\x01\x1f\x7fé∅⊤\u25c7\U0001f40a\U0001f701\uffff'
_EDGES = (0, 1, -1, 63, 64, -64, -65, 127, 128, 255, 256, 65436, -100, 2**31, -(2**63), 2**64, 10**30, -(10**30))


def random_value(draw: random.Random, depth: int = 3) -> Value:
    """Returns a value with at most so many levels of arrays, objects and contracts."""
    kind = int(draw.random() * (12 if depth else 9))
    if kind < 2:
        return int(draw.random() * 20000) - 10000
    if kind == 2:
        return _EDGES[int(draw.random() * len(_EDGES))]
    if kind == 3:
        return _float(draw)
    if kind == 4:
        return _text(draw)
    if kind == 5:
        return draw.randbytes(int(draw.random() * 6))
    if kind == 6:
        return Handle(_WORDS[int(draw.random() * len(_WORDS))])
    if kind < 9:
        return (None, True, False, 0, 0.0, "")[int(draw.random() * 6)]
    count = int(draw.random() * 5)
    if kind == 9:
        return [random_value(draw, depth - 1) for _ in range(count)]
    if kind == 10:
        return {_key(draw): random_value(draw, depth - 1) for _ in range(count)}
    fields: dict[int, Any] = {int(draw.random() * 300): random_value(draw, depth - 1) for _ in range(count)}
    return Contract(int(draw.random() * 1001), fields)


def _float(draw: random.Random) -> float:
    if draw.random() < 0.5:
        return round(draw.random() * 2000 - 1000, 2)
    (real,) = struct.unpack(">d", draw.randbytes(8))
    return real if real - real == 0 else 3.0  # no NaN, no infinity


def _text(draw: random.Random) -> str:
    if draw.random() < 0.5:
        return _STRINGS[int(draw.random() * len(_STRINGS))]
    return "".join([_GLYPHS[int(draw.random() * len(_GLYPHS))] for _ in range(int(draw.random() * 12))])


def _key(draw: random.Random) -> str:
    return _WORDS[int(draw.random() * len(_WORDS))] if draw.random() < 0.8 else _text(draw)
