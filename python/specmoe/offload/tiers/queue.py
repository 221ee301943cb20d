"""The order of transfers: demand before speculation, each expert once."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from ..store import ExpertKey


@dataclass
class Request:
    """One expert to load.

    Args:
        key: the expert.
        demand: a layer waits for it; otherwise it is a guess.
        probability: of being used, for a guess: the likelier is served first.
    """

    key: ExpertKey
    demand: bool
    probability: float = 1.0


class TransferQueue:
    """Waiting requests; not locked: its owner holds the lock."""

    def __init__(self) -> None:
        self._waiting: dict[ExpertKey, Request] = {}
        self._heap: list[tuple[int, float, int, Request]] = []
        self._order = count()
        self._demands = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: ExpertKey) -> bool:
        return key in self._waiting

    @property
    def demands(self) -> int:
        """How many of the waiting requests are demands."""
        return self._demands

    def put(self, key: ExpertKey, *, demand: bool, probability: float = 1.0) -> bool:
        """Add a request, or raise a waiting guess to a demand; return whether anything changed."""
        waiting = self._waiting.get(key)
        if waiting is not None and (waiting.demand or not demand):
            return False
        request = Request(key, demand, probability)
        self._waiting[key] = request
        self._demands += demand
        # Demands are served in the order they came, guesses by probability.
        rank = (0, 0.0) if demand else (1, -probability)
        heapq.heappush(self._heap, (*rank, next(self._order), request))
        return True

    def take(self, speculation: bool = True) -> Request | None:
        """Remove and return the next request: None when nothing, or nothing but unwelcome guesses, waits."""
        while self._heap:
            request = self._heap[0][-1]
            if self._waiting.get(request.key) is request:
                if not request.demand and not speculation:
                    return None
                heapq.heappop(self._heap)
                self._forget(request)
                return request
            heapq.heappop(self._heap)
        return None

    def cancel(self, key: ExpertKey) -> bool:
        """Drop a waiting guess; a demand is never dropped. Return whether one was."""
        waiting = self._waiting.get(key)
        if waiting is None or waiting.demand:
            return False
        self._forget(waiting)
        return True

    def cancel_where(self, stale: Callable[[ExpertKey], bool]) -> int:
        """Drop the waiting guesses for which `stale` holds; return how many."""
        return sum(self.cancel(key) for key in [k for k, r in self._waiting.items() if not r.demand and stale(k)])

    def abandon(self, key: ExpertKey) -> None:
        """Drop a waiting request of either kind: whoever waited has given up."""
        waiting = self._waiting.get(key)
        if waiting is not None:
            self._forget(waiting)

    def clear(self) -> None:
        """Drop everything."""
        self._waiting.clear()
        self._heap.clear()
        self._demands = 0

    def _forget(self, request: Request) -> None:
        del self._waiting[request.key]
        self._demands -= request.demand
        if not self._waiting:
            # What was dropped leaves the heap when it is met there: with nothing behind it, it never would be.
            self._heap.clear()
