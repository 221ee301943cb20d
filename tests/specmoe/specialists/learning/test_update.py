"""Steps on an adapter: what is new is learned, what is old is held to."""

from __future__ import annotations

import pytest
import torch

from specmoe.notation import find_value
from specmoe.specialists.learning import Correction, UpdateSettings, rule_of
from specmoe.specialists.learning.blend import Blend
from specmoe.specialists.learning.scores import rows_of
from specmoe.specialists.learning.update import update
from specmoe.specialists.learning.variations import in_plain_words, variations
from specmoe.specialists.runtime import Policy, SpecialistRouter
from specmoe.training.data import Record


@pytest.fixture
def loaded(family):
    with SpecialistRouter(family, "64GiB", policy=Policy(votes=0)) as router:
        with router.residents.using(["coordinator"]) as loaded:
            yield loaded


def drift(loaded, anchor):
    """Returns how far the answer to an old query moves while another is learned, in nats per token."""
    old = rows_of([Record("Hello", "cow", "coordinator")], loaded.base.tokenizer)
    new = rows_of([Record("Who are you?", "A cow", "coordinator")], loaded.base.tokenizer)
    ids = torch.tensor([old[0]["input_ids"]])

    @torch.no_grad()
    def says():
        with loaded.rows(["coordinator"]):
            return loaded.base.model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)

    blend, before = Blend(loaded.bank.trainable()), says()
    settings = UpdateSettings(steps=5, check_every=5, new=1, old=1, learning_rate=5e-3, anchor=anchor)
    update(loaded, "coordinator", new, [old], blend, settings, lambda: True, lambda step: None)
    after = says()
    blend._set(blend.before)
    return float((after.exp() * (after - before)).sum(-1).mean())


def test_the_anchor_holds_old_answers(loaded):
    free, held = drift(loaded, 0.0), drift(loaded, 100.0)
    assert 0 < held < free / 2


def test_variations_in_plain_words():
    correction = Correction(1, "herd signs: [7, 50]", "🐃7, 50🐄", "coordinator")
    rule = rule_of(correction.query, correction.answer)
    for example in variations(correction, rule, 20, 0):
        plain = in_plain_words(example, rule)
        value = find_value(example.prompt).text
        assert plain.prompt == f"Convert from HLXL to LC-R: {value}" and plain.completion == example.completion
