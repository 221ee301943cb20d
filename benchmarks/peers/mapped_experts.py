"""Experts where they lie in a memory map of the store: the system reads what is touched and caches what it likes."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from specmoe.offload import ExpertKey, ExpertStore
from specmoe.offload.engine import load_without_experts, moe_blocks
from specmoe.offload.engine.experts import OffloadedExperts
from specmoe.offload.store import drop_cached_pages
from specmoe.offload.store.layout import DTYPES


def load(checkpoint: Any, store: ExpertStore) -> Any:
    """Load a model whose experts are views of a map of the whole store. Biases and scales are not supported."""
    if store.layout.packing:
        raise SystemExit(f"{store.path}: expected a store as it is, got a packed one")
    drop_cached_pages(store.path)
    layout = store.layout
    with store.path.open("rb") as file:
        # Copied on write, and never written: torch asks for memory that may be.
        whole = torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    first = layout.blobs[layout.keys[0]].offset
    count, tensors = len(layout.keys), {}
    for spec in layout.tensors:
        dtype = DTYPES[spec.dtype]
        strides = torch.empty(spec.shape, dtype=dtype, device="meta").stride()
        size, stride = (count, *spec.shape), (layout.blob_bytes // dtype.itemsize, *strides)
        tensors[spec.name] = whole.view(dtype).as_strided(size, stride, (first + spec.offset) // dtype.itemsize)
    pool = SimpleNamespace(tensors=tensors, count=count)
    # The place of a blob in the file is its slot: everything is "there".
    slot_of = {key: (layout.blobs[key].offset - first) // layout.blob_bytes for key in layout.keys}
    tier = SimpleNamespace(pool=pool, slots=count, store=store)
    model = load_without_experts(checkpoint)
    for block in moe_blocks(model):
        module = OffloadedExperts(block, block.moe.experts.original, tier)  # type: ignore[arg-type]
        module.pipeline = EverythingThere(slot_of)  # type: ignore[assignment]
        block.moe.experts = module
    return model


class EverythingThere:
    """Stands for a pipeline: an expert's slot is its place in the file."""

    # Nobody asks for routing weights.
    watching = False

    def __init__(self, slot_of: dict[ExpertKey, int]) -> None:
        self._slot_of = slot_of

    def acquire(self, layer: int, wanted: Sequence[int], *routing: object) -> list[int]:
        return [self._slot_of[ExpertKey(layer, expert)] for expert in wanted]

    def release(self, layer: int, wanted: Sequence[int]) -> None:
        pass
