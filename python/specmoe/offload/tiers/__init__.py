"""Where experts are held in memory: slots, the queue that fills them, and who goes when they are full."""

from __future__ import annotations

from .device import DeviceTier
from .eviction import LFU, LRU, POLICIES, DecayedLFU, EvictionPolicy, Guided
from .host import HostTier
from .queue import Request, TransferQueue
from .slots import SlotPool

__all__ = [
    "LFU",
    "LRU",
    "POLICIES",
    "DecayedLFU",
    "DeviceTier",
    "EvictionPolicy",
    "Guided",
    "HostTier",
    "Request",
    "SlotPool",
    "TransferQueue",
]
