from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from specmoe.offload import LRU, ExpertKey, ExpertStore, HostTier
from specmoe.offload.tiers import LFU, POLICIES, DecayedLFU, Guided


def filled(*experts: int) -> LRU:
    policy = LRU()
    for expert in experts:
        policy.insert(ExpertKey(0, expert))
    return policy


def order(policy: LRU) -> list[int]:
    return [key.expert for key in policy.order()]


def test_lru_order_is_by_last_use() -> None:
    policy = filled(1, 2, 3)
    policy.touch(ExpertKey(0, 1))
    assert order(policy) == [2, 3, 1]


def test_lru_demoted_goes_first() -> None:
    policy = filled(1, 2, 3)
    policy.demote(ExpertKey(0, 3))
    assert order(policy) == [3, 1, 2]


def test_lru_remove_and_insert_again() -> None:
    policy = filled(1, 2, 3)
    policy.remove(ExpertKey(0, 1))
    assert order(policy) == [2, 3]
    policy.insert(ExpertKey(0, 1))
    assert order(policy) == [2, 3, 1]


def routed(policy: Any, *tokens: tuple[int, ...], layer: int = 0, experts: int = 8) -> None:
    for token in tokens:
        policy.routed(layer, np.array([token]), experts)


def hold(policy: Any, *experts: int, layer: int = 0) -> None:
    for expert in experts:
        policy.insert(ExpertKey(layer, expert))


def test_lfu_counts_beyond_a_stay() -> None:
    policy = LFU()
    routed(policy, (1, 2), (1, 3), (1, 2))
    hold(policy, 1, 2, 3, 4)
    assert order(policy) == [4, 3, 2, 1]
    policy.remove(ExpertKey(0, 3))
    assert order(policy) == [4, 2, 1]
    routed(policy, (3, 3), (3, 3))
    policy.insert(ExpertKey(0, 3))
    assert order(policy) == [4, 2, 1, 3]


def test_equals_go_by_last_use() -> None:
    policy = LFU()
    hold(policy, 5, 6, 7)
    policy.touch(ExpertKey(0, 5))
    assert order(policy) == [6, 7, 5]


def test_decay_forgets_what_was_often_used_long_ago() -> None:
    policy = DecayedLFU(half_life=2)
    routed(policy, *[(1, 2)] * 8, *[(3, 4)] * 4, (2, 3))
    hold(policy, 1, 2, 3, 4)
    assert order(policy) == [1, 2, 4, 3]
    # A pass of several tokens is as many visits.
    together = DecayedLFU(half_life=2)
    together.routed(0, np.array([(1, 2)] * 8 + [(3, 4)] * 4 + [(2, 3)]), 8)
    assert np.allclose(together._values, policy._values)


def test_layers_decay_by_their_own_visits() -> None:
    policy = DecayedLFU(half_life=1)
    routed(policy, (1, 1))
    routed(policy, *[(2, 2)] * 6, layer=3)
    hold(policy, 1)
    hold(policy, 1, 2, layer=3)
    assert list(policy.order()) == [ExpertKey(3, 1), ExpertKey(0, 1), ExpertKey(3, 2)]


def test_a_predictor_overrules_the_average() -> None:
    policy = Guided(weight=0.5)
    routed(policy, *[(1, 2)] * 3)
    hold(policy, 1, 2, 3)
    assert order(policy) == [3, 1, 2]
    policy.expect(0, np.array([0.0, 0.9, 0.0, 0.5, 0, 0, 0, 0]))
    assert order(policy) == [2, 3, 1]
    # What it said holds for one visit.
    routed(policy, (1, 2))
    assert order(policy) == [3, 1, 2]


def test_ranks_are_taken_at_their_word_until_the_next_visit() -> None:
    policy = Guided()
    routed(policy, *[(1, 2)] * 3)
    hold(policy, 1, 2, 3)
    policy.rank(0, np.array([0, 0.1, 0.5, 0.3, 0, 0, 0, 0]))
    assert order(policy) == [1, 3, 2]
    routed(policy, (1, 2))
    assert order(policy) == [3, 1, 2]


def test_what_comes_is_held_until_its_layer_was_routed() -> None:
    policy = Guided()
    policy.rank(1, np.array([0.4, 0.3, 0.2, 0.1]))
    policy.rank(0, np.array([0.5, 0.5, 0.5, 0.5]))
    hold(policy, 0, 1, 2, 3, layer=1)
    hold(policy, 0)
    policy.coming(1, np.array([0.0, 0.0, 0.9, 0.3]))
    # Said twice, it is no truer.
    policy.coming(1, np.array([0.0, 0.0, 0.9, 0.3]))
    assert [tuple(key) for key in policy.order()] == [(1, 1), (1, 0), (1, 3), (0, 0), (1, 2)]
    policy.rank(1, np.array([0.4, 0.3, 0.2, 0.1]))
    assert [tuple(key) for key in policy.order()] == [(1, 3), (1, 2), (1, 1), (1, 0), (0, 0)]


@pytest.mark.parametrize("policy", [LRU(), LFU(), DecayedLFU(), Guided()])
def test_the_victim_is_the_first_in_order_that_nobody_holds(policy: Any) -> None:
    chance = np.random.default_rng(0)
    assert policy.victim(set()) is None
    for step in range(200):
        layer = step % 3
        experts = chance.choice(8, 2, replace=False)
        policy.routed(layer, experts[None], 8)
        policy.coming((layer + 1) % 3, chance.random(8).round(1))
        resident = list(policy.order())
        for key in (ExpertKey(layer, int(e)) for e in experts):
            policy.touch(key) if key in resident else policy.insert(key)
        held = {key for key in policy.order() if chance.random() < 0.3}
        victim = policy.victim(held)
        assert victim == next((key for key in policy.order() if key not in held), None)
        if victim is not None and chance.random() < 0.7:
            policy.remove(victim)
        if resident and chance.random() < 0.3 and resident[0] in set(policy.order()):
            policy.demote(resident[0])


@pytest.mark.parametrize("policy", [LFU(), DecayedLFU(), Guided()])
def test_wrong_guesses_go_first_until_they_are_used(policy: Any) -> None:
    routed(policy, (1, 2), (1, 2))
    hold(policy, 0, 1, 2)
    policy.demote(ExpertKey(0, 2))
    assert order(policy) == [2, 0, 1]
    policy.touch(ExpertKey(0, 2))
    assert order(policy)[0] == 0


def test_ids_of_no_expert_are_passed_over() -> None:
    for policy in (LFU(), DecayedLFU(), Guided()):
        routed(policy, (8, 1), (8, 8), experts=8)
        assert policy._values.shape == (1, 8)


@pytest.mark.parametrize("policy", ["lru", "lfu", "lfu-decay", "guided"])
def test_every_policy_serves_a_tier(store: ExpertStore, policy: str) -> None:
    chance = np.random.default_rng(0)
    with HostTier(store, 5, policy=POLICIES[policy]()) as tier:
        for step in range(60):
            layer = step % 3
            wanted = chance.choice(6, 2, replace=False)
            tier.routed(layer, wanted[None], 6)
            tier.expect(layer, chance.random(6))
            keys = [ExpertKey(layer, int(e)) for e in wanted]
            tier.demand(keys)
            slots = tier.wait(keys)
            for key, slot in zip(keys, slots, strict=True):
                for name, value in store.read(key).items():
                    assert torch.equal(tier.pool.tensors[name][slot], value)
            tier.release(keys)
        assert tier.stats.hits > 0


class Plain(Guided):
    """Values every resident expert anew, and sorts them all: what `victim` is compared with."""

    def __init__(self) -> None:
        super().__init__()
        self.there: set[ExpertKey] = set()
        self.wrong: set[ExpertKey] = set()

    def insert(self, key: ExpertKey) -> None:
        self.there.add(key)
        super().insert(key)

    def touch(self, key: ExpertKey) -> None:
        self.wrong.discard(key)
        super().touch(key)

    def demote(self, key: ExpertKey) -> None:
        self.wrong.add(key)
        super().demote(key)

    def remove(self, key: ExpertKey) -> None:
        self.there.discard(key)
        super().remove(key)

    def first(self, held: set[ExpertKey]) -> ExpertKey | None:
        def worth(key: ExpertKey) -> tuple[float, int]:
            return -np.inf if key in self.wrong else float(self._values[key]), int(self._used[key])

        return min(self.there - held, key=worth, default=None)


@pytest.mark.parametrize("seed", range(4))
def test_the_victim_is_the_one_of_least_worth_along_any_history(seed: int) -> None:
    chance = np.random.default_rng(seed)
    policy = Plain()
    for _ in range(150):
        # Layers and experts come one by one: the tables grow.
        layer, count = int(chance.integers(4)), int(chance.integers(3, 9))
        experts = chance.choice(count, 2, replace=False)
        policy.routed(layer, experts[None], count)
        policy.coming((layer + 1) % 4, chance.random(count).round(1))
        for key in (ExpertKey(layer, int(e)) for e in experts):
            policy.touch(key) if key in policy.there else policy.insert(key)
        there = sorted(policy.there)
        if chance.random() < 0.3:
            policy.demote(there[int(chance.integers(len(there)))])
        held = {key for key in there if chance.random() < 0.4}
        victim = policy.victim(held)
        assert victim == policy.first(held)
        if victim is not None and chance.random() < 0.7:
            policy.remove(victim)
