"""Words that say nothing: what is asked for stays."""

from __future__ import annotations

import pytest
from tiny_base import sides

from specmoe.specialists.corpora import SPECIALISTS
from specmoe.specialists.corpora.phrasings import _OPENERS
from specmoe.specialists.requests import understand
from specmoe.specialists.training.fillers import with_fillers
from specmoe.specialists.verification import verify


@pytest.mark.parametrize("name", list(SPECIALISTS))
def test_what_is_asked_for_stays(name):
    examples = sides(name, 300)
    changed = with_fillers(examples, 1.0, seed=0)
    assert sum(a.prompt != b.prompt for a, b in zip(examples, changed, strict=True)) > 150
    for before, after in zip(examples, changed, strict=True):
        assert after.completion == before.completion
        assert understand(after.prompt).target == understand(before.prompt).target
        if after.is_conversion:
            assert verify(after.prompt, after.completion).verified


def test_a_share_of_them_is_changed_and_the_seed_says_which():
    examples = sides("ascii", 400)
    changed = [a.prompt != b.prompt for a, b in zip(examples, with_fillers(examples, 0.5, seed=1), strict=True)]
    assert 120 < sum(changed) < 200
    assert with_fillers(examples, 0.5, seed=1) == with_fillers(examples, 0.5, seed=1)
    assert with_fillers(examples, 0.5, seed=1) != with_fillers(examples, 0.5, seed=2)
    assert with_fillers(examples, 0.0, seed=1) == examples


def test_no_word_of_the_test_side_comes_in():
    words = {opener.strip().lower() for opener in _OPENERS["test"]} - {""}
    prompts = [e.prompt.lower() for e in with_fillers(sides("runic", 500), 1.0, seed=3)]
    assert not any(prompt.startswith(opener) for prompt in prompts for opener in words)
