"""What an expert is trained to do, by hand, and the records that show the way out of a loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from specmoe.hierarchical.loops import LONGEST_STRETCH, MOST_TIMES, with_loops
from specmoe.hierarchical.objective import unlikelihood_loss


def test_without_weight_it_is_the_cross_entropy():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 7, 11), torch.randint(0, 11, (3, 7))
    labels[0, :3] = labels[1, 5:] = -100
    plain = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert unlikelihood_loss(logits, labels, weight=0.0).item() == pytest.approx(plain.item(), rel=1e-6)
    assert unlikelihood_loss(logits, labels, num_items_in_batch=5, weight=0.0).item() == pytest.approx(
        plain.item() * int((labels[:, 1:] != -100).sum()) / 5, rel=1e-6
    )


def test_what_was_said_is_made_unlikely_once_a_token():
    # Said: 1, 1, 2, then 1 again. Only where 2 and the last 1 come next was another token said before.
    labels = torch.tensor([[-100, 1, 1, 2, 1]])
    p = torch.tensor([0.1, 0.5, 0.4])
    logits = p.log().expand(1, 5, 3)
    cross_entropy = -sum(math.log(x) for x in (0.5, 0.5, 0.4, 0.5)) / 4
    before_2, before_last_1 = -math.log(1 - 0.5), -math.log(1 - 0.4)
    wanted = cross_entropy + 2.0 * (before_2 + before_last_1) / 4
    assert unlikelihood_loss(logits, labels, weight=2.0).item() == pytest.approx(wanted, rel=1e-5)


def test_prompts_are_neither_learned_nor_avoided_and_certainty_stays_finite():
    labels = torch.tensor([[-100, -100, 3, 4]])
    logits = torch.zeros(1, 4, 5, requires_grad=True)
    unlikelihood_loss(logits, labels).backward()
    assert torch.equal(logits.grad[0, 0], torch.zeros(5))
    assert torch.equal(logits.grad[0, 3], torch.zeros(5))
    certain = torch.full((1, 4, 5), -50.0)
    certain[..., 3] = 50.0
    certain.requires_grad_()
    loss = unlikelihood_loss(certain, labels)
    loss.backward()
    assert loss.isfinite() and certain.grad.isfinite().all()


def test_copies_say_a_stretch_again_and_then_go_on():
    rows = Dataset.from_dict(
        {"input_ids": [list(range(20)), [7, 8, 9]], "labels": [[-100] * 5 + list(range(5, 20)), [-100, -100, 9]]}
    )
    found = with_loops(rows, context=100, seed=0)
    assert len(found) == 4 and found[0] == rows[0] and found[2] == rows[1]
    ids, labels = found[1]["input_ids"], found[1]["labels"]
    # Without what is not learned in the completion, it is the record.
    kept = [i for i in range(len(ids)) if i < 5 or labels[i] != -100]
    assert [ids[i] for i in kept] == list(range(20))
    again = [ids[i] for i in range(len(ids)) if i not in kept]
    assert 1 <= len(again) <= LONGEST_STRETCH * MOST_TIMES
    times = len(again) // len(set(again))
    assert again == again[: len(set(again))] * times and min(again) >= 5
    assert with_loops(rows, 100, 0).to_dict() == found.to_dict() != with_loops(rows, 100, 1).to_dict()
    assert all(len(row) <= 20 for row in with_loops(rows, context=20, seed=0)["input_ids"])
