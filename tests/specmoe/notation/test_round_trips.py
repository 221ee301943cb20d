"""Every value comes back from every notation."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specmoe.notation import NOTATIONS, Contract, Handle, parse, render, same

from .random_values import random_value

_NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]*", fullmatch=True)
_STRINGS = st.text(st.characters(exclude_categories=["Cs"]))
_NUMBERS = st.integers(0, 2**70)
_ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**700), 10**700),
    st.floats(allow_nan=False, allow_infinity=False),
    _STRINGS,
    st.binary(),
    _NAMES.map(Handle),
)
_KEYS = st.one_of(_NAMES, _STRINGS, st.just("C"))
VALUES = st.recursive(
    _ATOMS,
    lambda values: st.one_of(
        st.lists(values, max_size=5),
        st.dictionaries(_KEYS, values, max_size=5),
        st.builds(Contract, _NUMBERS, st.dictionaries(_NUMBERS, values, max_size=5)),
    ),
)


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_any_value_through_every_notation(value):
    canonical = render(value, "lc-b-bytes")
    for name in NOTATIONS:
        text = render(value, name)
        back = parse(text, name)
        assert back == value and same(back, value)
        assert render(back, name) == text
        assert render(back, "lc-b-bytes") == canonical


@settings(max_examples=100, deadline=None)
@given(VALUES, VALUES)
def test_different_values_have_different_texts(a, b):
    for name in NOTATIONS:
        if render(a, name) == render(b, name):
            assert same(a, b)


def _through_all(count: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(count):
        value = random_value(draw)
        # A repr tells 1, 1.0 and True apart, and has the order of keys, which the byte form does not keep.
        wanted = repr(value)
        for name in NOTATIONS:
            text = render(value, name)
            back = parse(text, name)
            same_text = render(back, name) == text if name == "lc-b-bytes" else repr(back) == wanted
            assert back == value and same_text, (name, text)


def test_random_values():
    _through_all(3000, seed=1)


@pytest.mark.slow
def test_a_million_random_values(capsys):
    begin = time.perf_counter()
    _through_all(1_000_000, seed=2)
    with capsys.disabled():
        print(f"1,000,000 random values through {len(NOTATIONS)} notations in {time.perf_counter() - begin:.0f} s")


def test_time_is_linear():
    # Four times the text takes about four times as long; where time is quadratic, sixteen times.
    def seconds(text: str, name: str) -> float:
        times = []
        for _ in range(3):
            begin = time.process_time()
            parse(text, name)
            times.append(time.process_time() - begin)
        return min(times)

    texts = {
        "hlxl": lambda n: "[" + "1, " * n + "1]",
        "lc-t": lambda n: '"' + 'a\\"b' * n + '"',
        "lc-r": lambda n: "🐃" + "🐃🐄, " * n + "1🐄",
        "lc-b": lambda n: "[[" + "{x:0x01}," * n + "_]]",
    }
    for name, text in texts.items():
        assert seconds(text(40_000), name) < 10 * seconds(text(10_000), name) + 0.05
