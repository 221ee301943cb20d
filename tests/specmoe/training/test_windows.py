"""Training windows cover the text evenly; validation windows cover it exactly once."""

from __future__ import annotations

import pytest
import torch

from specmoe.training import DataError
from specmoe.training.windows import IGNORED_LABEL, TrainWindows, split_in_order, validation_windows


def test_the_split_is_nine_to_one_in_order():
    tokens = torch.arange(1005)
    assert split_in_order(tokens, 8).boundary == 904


def test_a_text_too_short_for_the_block_is_refused():
    with pytest.raises(DataError, match="at least 201 training tokens for block_size=100, got 180"):
        split_in_order(torch.arange(200), 100)


def test_labels_are_the_next_tokens():
    windows = TrainWindows(torch.arange(500), block_size=8, count=70, seed=0)
    batch = windows.__getitems__(list(range(70)))
    assert batch["input_ids"].shape == (70, 8)
    assert torch.equal(batch["shift_labels"], batch["input_ids"] + 1)
    assert torch.equal(windows[69]["input_ids"], batch["input_ids"][69])


def test_a_pass_over_the_text_sees_every_token_at_most_once_and_nearly_all():
    windows = TrainWindows(torch.arange(500), block_size=8, count=60, seed=0)
    seen = windows.__getitems__(list(range(60)))["input_ids"].flatten()
    assert len(seen.unique()) == 480
    later = TrainWindows(torch.arange(500), block_size=8, count=600, seed=0)
    assert torch.bincount(later.__getitems__(list(range(600)))["input_ids"].flatten(), minlength=500)[8:490].min() > 7


def test_windows_are_a_function_of_the_seed_and_not_of_the_count():
    def starts(count, seed):
        return TrainWindows(torch.arange(500), 8, count, seed).starts

    assert torch.equal(starts(50, 1), starts(200, 1)[:50])
    assert not torch.equal(starts(50, 1), starts(50, 2))


@pytest.mark.parametrize("total", [100, 101, 107, 130], ids=lambda total: f"N{total}")
def test_every_validation_token_is_predicted_exactly_once(total):
    split = split_in_order(torch.arange(1000, 1000 + total), 4)
    inputs, labels = validation_windows(split, 4)
    assert inputs.shape == labels.shape and inputs.shape[1] == 4
    kept = labels != IGNORED_LABEL
    assert labels[kept].tolist() == split.tokens[split.boundary :].tolist()
    assert torch.equal(inputs[kept], labels[kept] - 1)
