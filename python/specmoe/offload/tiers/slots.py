"""Slots: one block of memory, allocated once, that holds as many experts as the budget allows.

Letters: S slots, E experts.
"""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from ..store import StoreLayout, aligned_buffer
from ..store.layout import DTYPES


class SlotPool:
    """S slots of one blob each.

    A read fills a slot directly, and `tensors` are views over all slots, with slots in place of experts: (S, ...) with
    the strides of whole blobs along the first dimension. So an op takes them as its weights, and no expert is copied.
    Vectors (biases, scales) are the exception: ops take them without gaps, so `settle` copies those of a slot, after it
    was filled, to where the slots' vectors lie side by side.

    Args:
        layout: the store's.
        count: S.
        device: where the slots are; those on the CPU can be read into.

    Attributes:
        raw: (S, bytes of a blob) uint8.
    """

    def __init__(self, layout: StoreLayout, count: int, device: torch.device | str = "cpu") -> None:
        if count < 1:
            raise ValueError(f"SlotPool: count: expected at least 1 slot, got {count}")
        self.count = count
        self.blob_bytes = layout.blob_bytes
        self.device = torch.device(device)
        if self.device.type == "cpu":
            self._buffer = aligned_buffer(count * layout.blob_bytes)
            self._bytes = memoryview(self._buffer)
            raw = torch.frombuffer(self._buffer, dtype=torch.uint8)
        else:
            raw = torch.empty(count * layout.blob_bytes, dtype=torch.uint8, device=self.device)
        self.raw = raw.view(count, layout.blob_bytes)
        self.slot_bytes = slot_bytes(layout)
        self.tensors: dict[str, Tensor] = {}
        self._vectors: list[tuple[Tensor, Tensor]] = []
        for spec in layout.tensors:
            dtype = DTYPES[spec.dtype]
            inner = torch.empty(spec.shape, dtype=dtype, device="meta").stride()
            size, stride = (count, *spec.shape), (layout.blob_bytes // dtype.itemsize, *inner)
            lying = raw.view(dtype).as_strided(size, stride, spec.offset // dtype.itemsize)
            if len(spec.shape) == 1:
                self.tensors[spec.name] = torch.empty(size, dtype=dtype, device=self.device)
                self._vectors.append((self.tensors[spec.name], lying))
            else:
                self.tensors[spec.name] = lying

    @property
    def nbytes(self) -> int:
        return self.count * self.slot_bytes

    def pin(self) -> bool:
        """Lock the slots' pages for copies to a GPU that run beside computing; return whether there is one."""
        if not torch.cuda.is_available() or self.device.type != "cpu":
            return False
        failed = int(torch.cuda.cudart().cudaHostRegister(self.raw.data_ptr(), self.raw.numel(), 0))
        if failed:
            raise RuntimeError(f"SlotPool: cudaHostRegister of {self.raw.numel()} bytes failed: error {failed}")
        self._pinned = True
        return True

    def unpin(self) -> None:
        """Undo `pin`; nothing may be copied any more."""
        if getattr(self, "_pinned", False):
            torch.cuda.cudart().cudaHostUnregister(self.raw.data_ptr())
            self._pinned = False

    def give_back(self) -> None:
        """Let the system have the slots' pages, whoever still holds the pool; what they held is gone."""
        # On a GPU the memory goes with the tensors.
        if self.device.type == "cpu" and hasattr(mmap, "MADV_DONTNEED"):
            self._buffer.madvise(mmap.MADV_DONTNEED)

    def settle(self, index: int) -> None:
        """Copy a slot's vectors to their place; called after the slot was filled."""
        for side_by_side, lying in self._vectors:
            side_by_side[index] = lying[index]

    def slot(self, index: int) -> memoryview:
        """Return the bytes of one slot, on the CPU."""
        return self._bytes[index * self.blob_bytes : (index + 1) * self.blob_bytes]


def slot_bytes(layout: StoreLayout) -> int:
    """Return the memory that one slot takes: the blob, and its vectors once more."""
    return layout.blob_bytes + sum(spec.nbytes for spec in layout.tensors if len(spec.shape) == 1)
