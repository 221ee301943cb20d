"""Passes with more experts than slots: the tokens are split so that each group's experts fit.

A token's output does not depend on which other tokens are in the call, so the split changes no bit; splitting the
experts of a token would, because its sum over experts would be rounded in between.

Letters: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class TokenGroup(NamedTuple):
    """Tokens that run together (None for all of them) and the experts that they need."""

    tokens: np.ndarray | None
    experts: list[int]


def plan_groups(
    experts: np.ndarray, num_experts: int, slots: int, resident: Callable[[], np.ndarray]
) -> list[TokenGroup]:
    """Split a pass into groups of at most `slots` experts each.

    Greedy: a group begins with what is resident, and takes whichever token adds the fewest experts.

    Args:
        experts: (T, K) ids; ids of E or more are "none".
        num_experts: E.
        slots: at least K.
        resident: returns (E) bool, experts that need not be loaded; asked only if there is more than one group.
    """
    if len(experts) == 1:
        return [TokenGroup(None, sorted({e for e in experts[0].tolist() if e < num_experts}))]
    needs = np.zeros((len(experts), num_experts + 1), dtype=bool)
    np.put_along_axis(needs, np.minimum(experts, num_experts).astype(np.int64), True, axis=1)
    needs = needs[:, :num_experts]
    union = np.flatnonzero(needs.any(0))
    if len(union) <= slots:
        return [TokenGroup(None, union.tolist())]
    left = np.arange(len(experts))
    groups = []
    start = resident()
    while len(left):
        have = np.zeros(num_experts, dtype=bool)
        taken = np.zeros(len(left), dtype=bool)
        # Tokens served by resident experts alone come first, as long as those experts fit.
        free_ride = ~(needs[left] & ~start).any(1)
        for index in np.flatnonzero(free_ride):
            union_here = have | needs[left[index]]
            if union_here.sum() <= slots:
                have, taken[index] = union_here, True
        while not taken.all():
            added = (needs[left] & ~have).sum(1)
            added[taken] = num_experts + 1
            best = int(added.argmin())
            if have.sum() + added[best] > slots:
                break
            have |= needs[left[best]]
            taken |= ~(needs[left] & ~have).any(1)
        groups.append(TokenGroup(left[taken], np.flatnonzero(have).tolist()))
        left = left[~taken]
        start = have
    return groups
