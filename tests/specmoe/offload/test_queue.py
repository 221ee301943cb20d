from __future__ import annotations

from specmoe.offload import ExpertKey
from specmoe.offload.tiers import TransferQueue


def key(expert: int, layer: int = 0) -> ExpertKey:
    return ExpertKey(layer, expert)


def drain(queue: TransferQueue, speculation: bool = True) -> list[int]:
    taken = []
    while (request := queue.take(speculation)) is not None:
        taken.append(request.key.expert)
    return taken


def test_demand_is_served_before_speculation_in_order_of_arrival() -> None:
    queue = TransferQueue()
    queue.put(key(1), demand=False, probability=0.9)
    queue.put(key(5), demand=True)
    queue.put(key(4), demand=True)
    assert drain(queue) == [5, 4, 1]


def test_guesses_are_served_by_probability() -> None:
    queue = TransferQueue()
    for expert, probability in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.9)):
        queue.put(key(expert), demand=False, probability=probability)
    assert drain(queue) == [2, 4, 3, 1]


def test_each_expert_waits_once() -> None:
    queue = TransferQueue()
    assert queue.put(key(1), demand=True)
    assert not queue.put(key(1), demand=True)
    assert not queue.put(key(1), demand=False)
    assert len(queue) == queue.demands == 1
    assert drain(queue) == [1]
    assert len(queue) == queue.demands == 0


def test_a_guess_becomes_a_demand() -> None:
    queue = TransferQueue()
    queue.put(key(1), demand=False, probability=0.1)
    queue.put(key(2), demand=False, probability=0.9)
    assert queue.put(key(1), demand=True)
    assert queue.demands == 1 and len(queue) == 2
    assert drain(queue) == [1, 2]


def test_take_without_speculation_leaves_the_guesses() -> None:
    queue = TransferQueue()
    queue.put(key(1), demand=False)
    queue.put(key(2), demand=True)
    assert drain(queue, speculation=False) == [2]
    assert key(1) in queue
    assert drain(queue) == [1]


def test_cancel_drops_guesses_and_never_demands() -> None:
    queue = TransferQueue()
    queue.put(key(1), demand=False)
    queue.put(key(2), demand=True)
    assert queue.cancel(key(1))
    assert not queue.cancel(key(1))
    assert not queue.cancel(key(2))
    assert drain(queue) == [2]


def test_cancelled_guess_may_come_again() -> None:
    queue = TransferQueue()
    queue.put(key(1), demand=False, probability=0.9)
    queue.cancel(key(1))
    assert queue.put(key(1), demand=False, probability=0.1)
    assert drain(queue) == [1]


def test_cancel_where() -> None:
    queue = TransferQueue()
    queue.put(key(1, layer=0), demand=False)
    queue.put(key(2, layer=1), demand=False)
    queue.put(key(3, layer=0), demand=True)
    assert queue.cancel_where(lambda k: k.layer == 0) == 1
    assert drain(queue) == [3, 2]


def test_abandon_drops_either_kind() -> None:
    queue = TransferQueue()
    queue.put(key(1), demand=True)
    queue.put(key(2), demand=False)
    queue.abandon(key(1))
    queue.abandon(key(9))
    assert queue.demands == 0
    assert drain(queue) == [2]


def test_clear() -> None:
    queue = TransferQueue()
    queue.put(key(1), demand=True)
    queue.clear()
    assert len(queue) == queue.demands == 0 and queue.take() is None


def test_what_was_cancelled_does_not_pile_up() -> None:
    queue = TransferQueue()
    for _ in range(100):
        queue.put(key(1), demand=False, probability=0.9)
        queue.put(key(2), demand=False, probability=0.5)
        assert queue.cancel_where(lambda _: True) == 2
    assert not queue._heap
