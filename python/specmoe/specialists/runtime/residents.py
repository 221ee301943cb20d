"""Which models are in memory: the coordinator always, specialists while they fit, the longest unused goes first."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ...lora.adapters import read_adapter
from ...lora.base import Base
from ...offload.budget import format_bytes
from ..bases import load_quantized
from ..learning.original import original_folder, original_name
from .loaded import Loaded
from .members import COORDINATOR, Member
from .memory import give_back


class Residents:
    """The models of a family within a budget; a base that several share is there once. Safe to use from threads."""

    def __init__(
        self,
        members: Mapping[str, Member],
        budget: int,
        load: Callable[[Path], Base] = load_quantized,
        pinned: str = COORDINATOR,
    ) -> None:
        """Loads nothing yet.

        Args:
            members: the models by name.
            budget: bytes for all of them.
            load: opens a base.
            pinned: the model that stays once it is in memory.

        Raises:
            ValueError: the budget does not hold the pinned model with each of the others; the message says what would.
        """
        self.members, self.budget, self.pinned = dict(members), budget, pinned
        self._load_base = load
        largest = max(members, key=lambda name: self.bytes_of({pinned, name}))
        if (need := self.bytes_of({pinned, largest})) > budget:
            raise ValueError(
                f"memory: expected at least {format_bytes(need)} for models ({pinned} with {largest}), "
                f"got {format_bytes(max(0, budget))}"
            )
        self._bases: dict[Path, Loaded] = {}
        # The least recently used first.
        self._order: OrderedDict[str, None] = OrderedDict()
        self._users: Counter[str] = Counter()
        # Guards the three above, for moments; a load, which is long, holds the other one.
        self._state = threading.Condition()
        self._loading = threading.Lock()
        self._background = ThreadPoolExecutor(1, "specialists")
        self._expected: Future[None] | None = None
        self.loads = 0

    def bytes_of(self, names: Iterable[str]) -> int:
        """Returns the bytes that models take together."""
        chosen = [self.members[name] for name in set(names)]
        bases = {member.base: member.base_bytes for member in chosen}
        return sum(bases.values()) + sum(member.adapter_bytes for member in chosen)

    @property
    def names(self) -> tuple[str, ...]:
        """The models in memory, the least recently used first."""
        with self._state:
            return tuple(self._order)

    def together(self, names: Iterable[str]) -> list[list[str]]:
        """Returns models in groups, each of one base and small enough to be in memory together."""
        groups: list[list[str]] = []
        for name in dict.fromkeys(names):
            for group in groups:
                same = self.members[group[0]].base == self.members[name].base
                if same and self.bytes_of({self.pinned, *group, name}) <= self.budget:
                    group.append(name)
                    break
            else:
                groups.append([name])
        return groups

    @contextmanager
    def using(self, names: Sequence[str]) -> Iterator[Loaded]:
        """Has the models of a group in memory within the block, with their base locked for this thread.

        Args:
            names: one of the groups of `together`.

        Raises:
            ValueError: a model is damaged, or its adapter belongs to another base.
        """
        base = self.members[names[0]].base
        if not self._claim(names):
            with self._loading:
                self._bring(names, wait=True)
                self._claim(names)
        try:
            with self._bases[base].lock:
                yield self._bases[base]
        finally:
            with self._state:
                self._users.subtract(names)
                self._state.notify_all()

    def expect(self, name: str) -> None:
        """Loads a model in the background, unless that would push out one in use or a load is under way already.

        What goes wrong there is told to whoever uses the model, since that loads it again.
        """
        if name in self.names or self._expected is not None and not self._expected.done():
            return
        self._expected = self._background.submit(self._bring_quietly, name)

    def wait(self) -> None:
        """Waits for the load in the background, if there is one."""
        if self._expected is not None:
            self._expected.result()

    def forget(self, name: str) -> None:
        """Takes a model out of memory, so that its next use reads its files again."""
        with self._loading:
            with self._state:
                while self._users[name]:
                    self._state.wait()
                known = name in self._order
                self._order.pop(name, None)
            if known:
                self._drop([name])

    def recount(self, name: str) -> None:
        """Counts the bytes of a model's files again, of which corrections make more."""
        with self._state:
            self.members[name] = dataclasses.replace(self.members[name])

    def close(self) -> None:
        """Takes all models out of memory."""
        self._background.shutdown(wait=True, cancel_futures=True)
        with self._state:
            names = tuple(self._order)
            self._order.clear()
        self._drop(names)

    def _claim(self, names: Sequence[str]) -> bool:
        with self._state:
            if any(name not in self._order for name in names):
                return False
            for name in names:
                self._order.move_to_end(name)
            self._users.update(names)
            return True

    def _bring_quietly(self, name: str) -> None:
        with self._loading:
            try:
                self._bring([name], wait=False)
            except (OSError, ValueError, RuntimeError):
                return

    def _bring(self, names: Sequence[str], wait: bool) -> None:
        """Loads models after making room; without `wait` it gives up where what is in use takes the room."""
        gone = []
        with self._state:
            missing = [name for name in names if name not in self._order]
            while self._over_budget(missing):
                free = [n for n in self._order if n != self.pinned and n not in names and not self._users[n]]
                if free:
                    gone.append(free[0])
                    del self._order[free[0]]
                elif wait:
                    self._state.wait()
                else:
                    break
            fits = not self._over_budget(missing)
        self._drop(gone)
        if not missing or not fits:
            return
        path = self.members[missing[0]].base
        loaded = self._bases.get(path) or Loaded(self._load_base(path))
        adapters = []
        for name in missing:
            if (place := self.members[name].adapter) is not None:
                adapters.append(read_adapter(place, name, loaded.base))
                if (original := original_folder(place)) is not None:
                    adapters.append(read_adapter(original, original_name(name), loaded.base))
        with loaded.lock:
            loaded.change(add=adapters)
        with self._state:
            self._bases[path] = loaded
            self.loads += len(missing)
            self._order.update(dict.fromkeys(missing))

    def _over_budget(self, added: Iterable[str]) -> bool:
        """Says whether there is no room for more models; the pinned one's is kept for it."""
        return self.bytes_of({self.pinned, *self._order, *added}) > self.budget

    def _drop(self, names: Sequence[str]) -> None:
        """Frees what models had that are in the order no more, and bases that nobody uses any longer."""
        for name in names:
            path = self.members[name].base
            if any(self.members[other].base == path for other in self.names):
                with self._bases[path].lock:
                    self._bases[path].change(remove=[name, original_name(name)])
            elif path in self._bases:
                with self._bases[path].lock:
                    self._bases.pop(path).free()
        if names:
            give_back()
