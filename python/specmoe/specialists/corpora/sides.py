"""The training side and the test side: they share no structure of a value, no phrasing, and some words only."""

from __future__ import annotations

import re

import xxhash

TRAIN, TEST = "train", "test"
SIDES = (TRAIN, TEST)
# Of structures with parts, and of words, one in so many is on the test side.
_ONE_IN = 5
# Values without parts that are only tested: numbers of some lengths, and words of some lengths.
_ATOMS = re.compile(r"-int2|int3|float2\.1|-?float3\.2|string(?:5|7)|string[2-5]\+[2-6]|handle(?:4|6|9|11)|bytes3")
_ATOM = re.compile(r"-?[a-z]+[0-9.+]*")
# Arrays of one kind that are only tested, by their length.
_LENGTHS = {"int": 4, "string": 3, "handle": 3}
_OTHER_LENGTH = 2
_LONGEST = 6


def side_of_shape(shape: str) -> str:
    """Returns the side that a structure is on.

    What has no parts, or one, has to be learned from examples. Tested lengths lie between trained ones.
    """
    if _ATOM.fullmatch(shape):
        held = _ATOMS.fullmatch(shape) is not None
    elif re.fullmatch(r"\[[a-z,]*\]", shape):
        items = shape[1:-1].split(",")
        if len(set(items)) == 1:
            held = len(items) == _LENGTHS.get(items[0], _OTHER_LENGTH)
        else:
            held = len(items) < _LONGEST and _drawn(f"shape {shape}")
    else:
        held = "," in shape and _drawn(f"shape {shape}")
    return TEST if held else TRAIN


def is_new_word(word: str) -> bool:
    """Says whether a word is kept from the training side; single letters never are."""
    return len(word) > 1 and _drawn(f"word {word}")


def _drawn(text: str) -> bool:
    return xxhash.xxh64_intdigest(text.encode()) % _ONE_IN == 0
