"""What a query asks for, and whether an answer is right."""

from __future__ import annotations

import random

import pytest

from specmoe.notation import NotationError, parse
from specmoe.specialists.corpora import SPECIALISTS, CorpusSettings, generate
from specmoe.specialists.requests import understand
from specmoe.specialists.verification import Verification, verify


@pytest.fixture(scope="module")
def conversions():
    settings = CorpusSettings(size=100, test_size=150)
    sides = [(name, side) for name in SPECIALISTS for side in ("train", "test")]
    return [e for name, side in sides for e in generate(name, side, settings) if e.is_conversion]


def test_requests_are_understood_in_both_sides_phrasings(conversions):
    for example in conversions:
        request = understand(example.prompt)
        assert request.target == example.target, example.prompt
        # Where two notations read the same value from a text, it does not matter which one it is of.
        assert request.value == parse(example.answer, "hlxl")


def test_right_answers_are_verified(conversions):
    for example in conversions:
        assert verify(example.prompt, example.completion) == Verification(True, "", example.completion)


def test_damaged_answers_are_not(conversions):
    draw = random.Random(0)
    refused = 0
    for example in conversions:
        right = example.completion
        place = draw.randrange(len(right))
        for wrong in (right[:place] + right[place + 1 :], right[:place] + draw.choice("07a]},") + right[place + 1 :]):
            said = verify(example.prompt, wrong)
            if said.verified:
                # Only the spacing was damaged; the text is the right one.
                assert said.text == right, (example.prompt, wrong)
                continue
            refused += 1
            assert said.reason and not said.text
    assert refused > len(conversions)


@pytest.mark.parametrize(
    ("prompt", "answer", "reason"),
    [
        ("Convert to LC-R: [1, 2]", "🐃1, 3🐄", "the answer means [1, 3], the query's value [1, 2]"),
        ("Convert to LC-R: [1, 2]", "🐃1, 2", 'LC-R: line 1, column 6: expected "," or "🐄", found the end'),
        ("Convert to LC-R: 1", "1.0", "the answer means 1.0, the query's value 1"),
        ("Convert to LC-R: true", "1", "LC-R"),
        ("Hello", "1", "the query has no value"),
        ("What about [1]?", "[1]", "the query names no notation to write"),
        ("[" * 9999, "1", "notation: expected at most 4096 characters"),
    ],
)
def test_reasons(prompt, answer, reason):
    said = verify(prompt, answer)
    assert not said.verified
    if reason != "LC-R":
        assert said.reason.startswith(reason)


def test_the_caller_may_name_source_and_target():
    assert verify("What about [3.14]?", "3.14", target="lc-r", source="lc-b").verified
    assert not verify("What about [3.14]?", "3.14", target="lc-r").verified
    said = verify("What about [3.14]?", "3.14", target="lc-r", source="lc-r")
    assert said.reason == "the query's value [3.14] is not of LC-R"
    with pytest.raises(ValueError, match="expected a value in the query"):
        _ = understand("hello").value


def test_nonsense_is_no_crash():
    draw = random.Random(1)
    pieces = ["Convert", "to", "LC-R", "from", "[", "]", '"', "🐃", "{C:", "900", "\x00", "\ud800", "parse", " "]
    for _ in range(300):
        text = "".join(draw.choices(pieces, k=draw.randrange(12)))
        try:
            verify(text, "".join(draw.choices(pieces, k=3)))
        except NotationError as error:  # pragma: no cover
            pytest.fail(f"{text!r}: {error}")
