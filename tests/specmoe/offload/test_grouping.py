from __future__ import annotations

import numpy as np
import pytest

from specmoe.offload.engine.grouping import plan_groups


def none() -> np.ndarray:
    return np.zeros(16, dtype=bool)


def test_everything_that_fits_is_one_group() -> None:
    groups = plan_groups(np.array([[0, 3], [3, 5]]), 16, 3, none)
    assert len(groups) == 1 and groups[0].tokens is None and groups[0].experts == [0, 3, 5]


def test_no_tokens_and_no_experts() -> None:
    assert plan_groups(np.zeros((0, 2), int), 16, 2, none)[0].experts == []
    assert plan_groups(np.full((3, 2), 16), 16, 2, none)[0].experts == []


@pytest.mark.parametrize("slots", [4, 5, 8, 15])
@pytest.mark.parametrize("tokens", [2, 7, 100])
def test_groups_cover_each_token_once_and_fit(slots: int, tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    experts = np.stack([rng.permutation(17)[:4] for _ in range(tokens)])
    resident = rng.random(16) < 0.3
    groups = plan_groups(experts, 16, slots, lambda: resident)
    covered = []
    for group in groups:
        rows = np.arange(tokens) if group.tokens is None else group.tokens
        covered += rows.tolist()
        assert len(group.experts) <= slots and len(rows)
        needed = set(experts[rows].reshape(-1).tolist()) - {16}
        assert needed <= set(group.experts)
    assert sorted(covered) == list(range(tokens))


def test_tokens_with_resident_experts_come_first() -> None:
    resident = none()
    resident[[7, 8]] = True
    groups = plan_groups(np.array([[0, 1], [2, 3], [7, 8]]), 16, 2, lambda: resident)
    assert groups[0].tokens is not None and groups[0].tokens.tolist() == [2]
    assert len(groups) == 3


def test_tokens_that_share_experts_go_together() -> None:
    experts = np.array([[0, 1], [4, 5], [1, 0], [5, 4], [0, 1]])
    groups = plan_groups(experts, 16, 2, none)
    assert [g.tokens.tolist() for g in groups if g.tokens is not None] == [[0, 2, 4], [1, 3]]
