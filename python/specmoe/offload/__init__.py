"""Running models whose experts do not fit in memory: a store on disk, tiers above it, and an engine that fills them."""

from __future__ import annotations

from .budget import format_bytes, parse_bytes
from .checkpoint import CheckpointError, build_checkpoint_store
from .engine import Offload, build_model_store, offload, record_routes
from .stats import TransferStats
from .store import ExpertKey, ExpertStore, StoreError
from .tiers import LRU, EvictionPolicy, HostTier

__all__ = [
    "LRU",
    "CheckpointError",
    "EvictionPolicy",
    "ExpertKey",
    "ExpertStore",
    "HostTier",
    "Offload",
    "StoreError",
    "TransferStats",
    "build_checkpoint_store",
    "build_model_store",
    "format_bytes",
    "offload",
    "parse_bytes",
    "record_routes",
]
