from __future__ import annotations

from specmoe.offload import LRU, ExpertKey


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
