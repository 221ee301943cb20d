"""Tiers of fast memory above the store: slots, eviction, transfers. The first tier is host memory."""

from __future__ import annotations

from .eviction import LRU, EvictionPolicy
from .host import HostTier
from .queue import Request, TransferQueue
from .slots import SlotPool

__all__ = ["LRU", "EvictionPolicy", "HostTier", "Request", "SlotPool", "TransferQueue"]
