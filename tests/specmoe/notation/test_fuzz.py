"""Random and damaged input: it has a value or a NotationError, and nothing else."""

from __future__ import annotations

import os
import random
import time

import pytest

from specmoe.notation import NOTATIONS, NotationError, parse, render

from .random_values import random_value

SECONDS = "SPECMOE_FUZZ_SECONDS"
_TEXTS = ("hlxl", "lc-t", "lc-r", "lc-b")
_PIECES = (
    *'[]{}()<>:,|=@&#"\\_TF-+.eE0123456789abxn \n\t\r\0',
    *"🐊🐁🐂🐃🐄🜊🜁🜂🜃🜄◇◆⟁⊠∅⊤⊥é\ud800\uffff",
    *("null", "true", "NULL", "TRUE", "C:", "0x", "&h_", 'b"', "\\u{", "\\x", "1e999", "nan", "@0: ", "14|", "9" * 700),
)


def _soup(draw: random.Random) -> str:
    return "".join(draw.choices(_PIECES, k=int(draw.random() * 24)))


def _damaged(draw: random.Random, text: str) -> str:
    for _ in range(1 + int(draw.random() * 3)):
        a, b = sorted((int(draw.random() * (len(text) + 1)), int(draw.random() * (len(text) + 1))))
        what = int(draw.random() * 4)
        if what == 0:
            text = text[:a] + draw.choice(_PIECES) + text[a:]
        elif what == 1:
            text = text[:a] + text[a + 1 :]
        elif what == 2:
            text = text[:a] + text[b:]
        else:
            text = text[:b] + text[a:b] * 2 + text[b:]
    return text


def _damaged_bytes(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(1 + int(draw.random() * 3)):
        place = int(draw.random() * (len(changed) + 1))
        what = int(draw.random() * 3)
        if what == 0:
            changed[place:place] = draw.randbytes(1)
        elif what == 1:
            del changed[place : place + 1]
        else:
            changed[place : place + 1] = bytes([int(draw.random() * 16)])
    return bytes(changed)


def _once(draw: random.Random) -> None:
    value = random_value(draw)
    for name in _TEXTS:
        for text in (_soup(draw), _damaged(draw, render(value, name)), draw.randbytes(12).decode("latin-1")):
            _read(text, name)
    for data in (draw.randbytes(int(draw.random() * 24)), _damaged_bytes(draw, render(value, "lc-b-bytes"))):
        _read(data, "lc-b-bytes")


def _read(text: str | bytes, name: str) -> None:
    try:
        value = parse(text, name)
    except NotationError as error:
        assert error.offset is not None and 0 <= error.offset <= len(text), (name, text)
        return
    # What is read can be written, and is read again as the same.
    for other in NOTATIONS:
        assert parse(render(value, other), other) == value, (name, text, other)


def test_nothing_but_notation_errors():
    draw = random.Random(3)
    for _ in range(1500):
        _once(draw)


@pytest.mark.slow
def test_long_fuzz(capsys):
    """As long as SPECMOE_FUZZ_SECONDS says, else ten minutes; the seed is printed."""
    seconds = float(os.environ.get(SECONDS, 600))
    seed = random.SystemRandom().randrange(1 << 32)
    draw, rounds, end = random.Random(seed), 0, time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            _once(draw)
            rounds += 1
    finally:
        with capsys.disabled():
            print(f"seed {seed}: {rounds} rounds of {3 * len(_TEXTS) + 2} texts in {seconds:.0f} s")
