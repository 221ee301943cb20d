"""The loss on the whole split."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from specmoe.training import evaluate
from specmoe.training.windows import split_in_order, validation_windows
from specmoe.transformer import SpecMoeConfig, SpecMoeForCausalLM


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SpecMoeForCausalLM(
        SpecMoeConfig(
            vocab_size=7,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            num_experts=3,
            initializer_range=0.5,
            dropout=0.5,
        )
    )


def test_the_loss_is_the_mean_over_every_validation_token(model, monkeypatch):
    # Two windows at a time: the last batch is smaller, its last window is filled up.
    monkeypatch.setattr(evaluate, "EVALUATION_TOKENS", 16)
    tokens = torch.randint(7, (530,), generator=torch.Generator().manual_seed(1))
    split = split_in_order(tokens, 8)
    model.train()
    got = evaluate.whole_split_loss(model, *validation_windows(split, 8))
    assert model.training
    model.eval()
    losses = []
    for start in range(split.boundary, 530, 8):
        stop = min(start + 8, 530)
        logits = model(tokens[None, start - 1 : stop - 1]).logits[0]
        losses.append(F.cross_entropy(logits, tokens[start:stop], reduction="none"))
    expected = torch.cat(losses)
    assert len(expected) == 53
    assert got == pytest.approx(expected.double().mean().item(), rel=1e-6)


def test_perplexity_is_the_exponential_of_nats():
    assert evaluate.perplexity(math.log(65)) == pytest.approx(65)
    assert evaluate.perplexity(0.0) == 1.0


def test_a_uniform_guess_has_the_vocabulary_for_perplexity(model):
    with torch.no_grad():
        model.lm_head.weight.zero_()
    labels = torch.randint(7, (3, 8))
    assert evaluate.perplexity(evaluate.whole_split_loss(model, labels, labels)) == pytest.approx(7, rel=1e-6)
