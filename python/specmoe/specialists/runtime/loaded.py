"""A base in memory with the adapters that are on it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ...lora.adapters import Adapter
from ...lora.bank import AdapterBank
from ...lora.base import Base
from ..learning.original import original_name


class Loaded:
    """A base whose adapters change; whoever works with it holds `lock`.

    Attributes:
        base: the base.
        lock: held while the model computes, and while its adapters change.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.lock = threading.RLock()
        self._bank: AdapterBank | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that are on the base."""
        return self._bank.names if self._bank is not None else ()

    @property
    def context(self) -> int:
        """The most tokens of a query and its answer."""
        return int(getattr(self.base.model.config, "max_position_embeddings", 0) or 1 << 30)

    @property
    def bank(self) -> AdapterBank:
        """The adapters.

        Raises:
            ValueError: there are none.
        """
        if self._bank is None:
            raise ValueError(f"base: {self.base.name}: expected adapters on it, found none")
        return self._bank

    def change(self, add: Iterable[Adapter] = (), remove: Iterable[str] = ()) -> None:
        """Puts adapters on and takes others off; one that is added replaces the one of its name.

        Raises:
            ValueError: an adapter of another base; those that were on stay.
        """
        added = list(add)
        gone = {*remove, *(adapter.name for adapter in added)}
        before = [self.bank.adapter(name) for name in self.names]
        try:
            self._put([adapter for adapter in before if adapter.name not in gone] + added)
        except BaseException:
            self._put(before)
            raise

    def _put(self, adapters: Sequence[Adapter]) -> None:
        if self._bank is not None:
            self._bank.close()
            self._bank = None
        if adapters:
            self._bank = AdapterBank(self.base.model, adapters)

    def free(self) -> None:
        """Lets go of the base, whoever still holds this object."""
        self._bank = None
        del self.base

    def who(self, name: str, corrected: bool) -> str:
        """Returns which adapter answers a query to a specialist.

        Args:
            name: the specialist.
            corrected: whether one of its corrections is about the query.
        """
        original = original_name(name)
        return original if not corrected and original in self.names else name

    @contextmanager
    def rows(self, names: Sequence[str]) -> Iterator[None]:
        """Within the block each row of a batch is answered by the model that is named for it.

        A name without an adapter is the base.
        """
        if self._bank is None:
            yield
            return
        with self._bank.rows([name if name in self.names else None for name in names]):
            yield
