"""Every expert of a model in one aligned, checksummed, read-only file."""

from __future__ import annotations

from .builder import build_store
from .files import DirectFile, aligned_buffer, drop_cached_pages
from .layout import ExpertKey, StoreError, StoreLayout, TensorSpec
from .resume import build_resumable, discard_log, discard_partial, partial_paths
from .store import ExpertStore

__all__ = [
    "DirectFile",
    "ExpertKey",
    "ExpertStore",
    "StoreError",
    "StoreLayout",
    "TensorSpec",
    "aligned_buffer",
    "build_resumable",
    "build_store",
    "discard_log",
    "discard_partial",
    "drop_cached_pages",
    "partial_paths",
]
