"""A stack of weights as the kernels take it: a pointer with strides, or a tensor descriptor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from moe_kernels.backends.triton.platform import Device


@dataclass(frozen=True)
class Weight:
    """A weight seen as (E, columns, k), with k the length of the sums.

    `transposed`: the columns of one k are neighbours in memory (`view` has them last), not the k of one column.
    """

    view: Tensor
    transposed: bool

    @property
    def E(self) -> int:
        return self.view.shape[0]

    @property
    def columns(self) -> int:
        return self.view.shape[2 if self.transposed else 1]

    @property
    def k(self) -> int:
        return self.view.shape[1 if self.transposed else 2]

    @property
    def strides(self) -> tuple[int, int, int]:
        """The strides of expert, column and k."""
        e, outer, inner = self.view.stride()
        return (e, inner, outer) if self.transposed else (e, outer, inner)

    def argument(self, columns: int, k: int, descriptor: bool) -> Any:
        """Return what a kernel takes that reads blocks of `columns` and `k`."""
        if not descriptor:
            return self.view
        from triton.tools.tensor_descriptor import TensorDescriptor

        block = [1, k, columns] if self.transposed else [1, columns, k]
        return TensorDescriptor(self.view, list(self.view.shape), list(self.view.stride()), block)


def weight_of(w: Tensor, transposed: bool) -> Weight:
    """See a weight (E, O, H), or (E, H, O) with `transposed`, as O columns of sums over H.

    It is read as it lies, if one of its two last dimensions is dense.
    """
    if w.stride(2) == 1 or w.shape[2] == 1:
        return Weight(w, transposed)
    if w.stride(1) == 1 or w.shape[1] == 1:
        return Weight(w.transpose(1, 2), not transposed)
    return Weight(w.contiguous(), transposed)


def backwards(weight: Weight) -> Weight:
    """See the same weight as the columns of its gradient's product: sums over what were the columns."""
    return Weight(weight.view, not weight.transposed)


def takes_descriptor(weight: Weight, device: Device) -> bool:
    """Whether the copy engine can fetch blocks of this weight: Hopper or newer, 16-bit numbers, aligned to 16 bytes."""
    view = weight.view
    if device.amd or device.architecture < 90 or view.element_size() != 2 or view.numel() == 0:
        return False
    return view.data_ptr() % 16 == 0 and view.stride(2) == 1 and all(s % 8 == 0 for s in view.stride()[:2])
