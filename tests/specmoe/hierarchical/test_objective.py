"""What an expert is trained to do, by hand, and the records that show the way out of a loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from specmoe.hierarchical.loops import LONGEST_STRETCH, MOST_TIMES, with_loops
from specmoe.hierarchical.networks import new_network
from specmoe.hierarchical.objective import AVOIDED, unlikelihood_loss
from specmoe.hierarchical.own_loops import MOST_PROMPTS, RUN, own_loops
from specmoe.hierarchical.presets import ExpertPreset


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


def test_what_is_to_be_avoided_is_made_unlikely_and_is_nothing_said():
    # 1 is learned, then 2 is to be avoided; 1 was said before the last one, 2 was not.
    labels = torch.tensor([[-100, 1, AVOIDED - 2, 0]])
    p = torch.tensor([0.1, 0.5, 0.4])
    logits = p.log().expand(1, 4, 3)
    cross_entropy = -(math.log(0.5) + math.log(0.1)) / 2
    unlikely = -(math.log(1 - 0.4) + math.log(1 - 0.5))
    loss = unlikelihood_loss(logits, labels, weight=3.0).item()
    assert loss == pytest.approx(cross_entropy + 3.0 * unlikely / 2, rel=1e-5)
    assert unlikelihood_loss(logits, labels, weight=0.0).item() == pytest.approx(cross_entropy, rel=1e-5)


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
    # Without what is to be avoided in the completion, it is the record.
    kept = [i for i in range(len(ids)) if i < 5 or labels[i] > AVOIDED]
    assert all(labels[i] == AVOIDED - ids[i] for i in range(len(ids)) if i not in kept)
    assert [ids[i] for i in kept] == list(range(20))
    again = [ids[i] for i in range(len(ids)) if i not in kept]
    assert 1 <= len(again) <= LONGEST_STRETCH * MOST_TIMES
    times = len(again) // len(set(again))
    assert again == again[: len(set(again))] * times and min(again) >= 5
    assert with_loops(rows, 100, 0).to_dict() == found.to_dict() != with_loops(rows, 100, 1).to_dict()
    assert all(len(row) <= 20 for row in with_loops(rows, context=20, seed=0)["input_ids"])


class _Tokenizer:
    """As much of one as a network is made with."""

    eos_token_id, pad_token_id = 0, 1

    def __len__(self) -> int:
        return 13


def test_own_loops_are_the_answers_that_go_round():
    # With random weights greedy answers end in a loop.
    network = new_network(ExpertPreset(2, 24, 2, context=64), _Tokenizer(), seed=3).eval()
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 13, (40, 6), generator=draw).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": [[-100] * 4 + row[4:] for row in ids]})
    found = own_loops(network, rows, context=48, seed=0)
    assert 0 < len(found) <= 40
    for row in found:
        prompt, answer = row["input_ids"][:4], row["input_ids"][4:]
        assert prompt in [of[:4] for of in ids] and len(row["input_ids"]) <= 48
        runs = [tuple(answer[end - RUN + 1 : end + 1]) for end in range(len(answer))]
        again = [end >= RUN - 1 and runs[end] in runs[RUN - 1 : end] for end in range(len(answer))]
        assert any(again)
        marked = [AVOIDED - token if bad else -100 for token, bad in zip(answer, again, strict=True)]
        assert row["labels"] == [-100] * 4 + marked
    # What the network says where it is asked alone.
    row = found[0]
    said = network.generate(torch.tensor([row["input_ids"][:4]]), max_new_tokens=len(row["input_ids"]) - 4)
    assert said[0].tolist() == row["input_ids"]
    assert own_loops(network, rows, context=48, seed=0).to_dict() == found.to_dict()


def test_own_loops_of_no_answer_and_of_many_prompts(monkeypatch):
    network = new_network(ExpertPreset(1, 8, 1, context=16), _Tokenizer(), seed=0).eval()
    rows = Dataset.from_dict({"input_ids": [[2] * 20, [3, 4]], "labels": [[-100] * 19 + [2], [-100, 4]]})
    # No room for one answer, and for four tokens and no repetition in the other.
    assert len(own_loops(network, rows, context=5, seed=0)) == 0
    assert MOST_PROMPTS >= 100
    monkeypatch.setattr("specmoe.hierarchical.own_loops.MOST_PROMPTS", 1)
    asked = []
    monkeypatch.setattr(
        "specmoe.hierarchical.own_loops.continuations",
        lambda experts, batch, *rest: asked.extend(batch) or [([], True)] * len(batch),
    )
    own_loops(network, rows, context=50, seed=0)
    assert len(asked) == 1
