"""The low-rank delta of each row's group (kernels: `grouped_lora_kernels.py`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from moe_kernels.backends.triton.grouped_lora_kernels import (
    _expand_kernel,
    _outer_kernel,
    _scaling_gradient_kernel,
    _shrink_kernel,
)
from moe_kernels.backends.triton.platform import Device, device_of, interpreted
from moe_kernels.backends.triton.route import route_triton

# The sums over H are cut into at most this many, of at least this many terms.
MOST_SPLITS = 8
LEAST_TERMS = 512


@dataclass(frozen=True)
class LoraTile:
    """Block sizes, not yet measured: all the products are bound by the bytes of x, of the delta or of A and B.

    Attributes:
        rows: of a block of h.
        rank: columns of h at a time.
        terms: the step along H in the shrink.
        columns: of a block of the delta, or of a gradient of A or B.
        contracted: the step along the rows in those gradients.
    """

    rows: int
    rank: int
    terms: int
    columns: int
    contracted: int
    warps: int
    stages: int = 2


def lora_tile(device: Device, itemsize: int, N: int, G: int, R: int, batch_invariant: bool = False) -> LoraTile:
    """Choose the block sizes from the rows per group, the rank and the size of the numbers."""
    rank = min(32 if itemsize == 4 or device.amd else 64, triton.next_power_of_2(max(R, 16)))
    # A fixed one where bits must not depend on the number of rows.
    rows = 16 if batch_invariant or N <= 16 * G else 64
    # In float32, four warps spill (64 rows on sm_100).
    warps = 8 if rank > 16 or (itemsize == 4 and rows > 16) else 4
    if itemsize == 4:
        # In float32 a step is also what is summed in one chain: 128 terms err 1.4 times as much as these.
        return LoraTile(rows, rank, 32, 64, 32, warps)
    if device.amd:
        # A wave of 32 has twice the sums a thread that one of 64 has, and the device does not say which it is.
        return LoraTile(rows, rank, 64, 64, 64, warps)
    return LoraTile(rows, rank, 128, 128, 64, warps, stages=3)


def splits(device: Device, terms: int, blocks: int, batch_invariant: bool = False) -> int:
    """Return into how many sums those over `terms` are cut, for a product of `blocks` blocks."""
    wanted = MOST_SPLITS // 2 if batch_invariant else device.processors // max(blocks, 1)
    return max(1, min(MOST_SPLITS, wanted, terms // LEAST_TERMS))


class _Call:
    """What the kernels of one call have in common: the plan over the groups, and the sizes."""

    def __init__(self, x: Tensor, A: Tensor, groups: Tensor, ranks: Tensor | None, batch_invariant: bool = False):
        self.N, (self.G, self.R, _) = x.shape[0], A.shape
        self.plan = route_triton(groups[:, None], self.G)
        self.ranks = ranks if ranks is None else ranks.contiguous()
        self.device, self.batch_invariant = device_of(x), batch_invariant
        self.tile = lora_tile(self.device, x.element_size(), self.N, self.G, self.R, batch_invariant)
        self.row_tiles = triton.cdiv(self.N, self.tile.rows) + min(self.G, self.N)
        self.constants = {
            "MIXED": ranks is not None,
            "BLOCK_N": self.tile.rows,
            "BLOCK_R": self.tile.rank,
            "INTERPRET": interpreted(),
            "num_warps": self.tile.warps,
            "num_stages": self.tile.stages,
        }
        self.G_PAD = triton.next_power_of_2(self.G + 1)

    def shrink(self, x: Tensor, A: Tensor) -> Tensor:
        """Return h (splits, N, R) of x (N, H) and A (G, R, H)."""
        H, ranks_at_once = x.shape[1], triton.cdiv(self.R, self.tile.rank)
        parts = splits(self.device, H, self.row_tiles * ranks_at_once, self.batch_invariant)
        steps = triton.cdiv(triton.cdiv(H, self.tile.terms), parts)
        h = torch.empty(parts, self.N, self.R, dtype=torch.float32, device=x.device)
        offsets, row_token, _ = self.plan
        _shrink_kernel[(self.row_tiles, ranks_at_once, parts)](
            x,
            A,
            offsets,
            row_token,
            self.ranks,
            h,
            self.N,
            self.G,
            H,
            self.R,
            steps * self.tile.terms,
            *x.stride(),
            *A.stride(),
            G_PAD=self.G_PAD,
            BLOCK_H=self.tile.terms,
            **self.constants,
        )
        return h

    def expand(self, h: Tensor, B: Tensor, scaling: Tensor, base: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return the delta (N, C) of B (G, C, R), or `base` with the delta added."""
        C = B.shape[1]
        out = torch.empty(self.N, C, dtype=dtype, device=h.device) if base is None else base
        without_group = 0 if base is not None else triton.cdiv(self.N, self.tile.rows)
        offsets, row_token, slot_row = self.plan
        _expand_kernel[(self.row_tiles + without_group, triton.cdiv(C, self.tile.columns))](
            h,
            B,
            offsets,
            row_token,
            slot_row,
            scaling,
            self.ranks,
            out,
            out,
            self.N,
            self.G,
            C,
            self.R,
            self.row_tiles,
            *B.stride(),
            *out.stride(),
            *out.stride(),
            BASE=base is not None,
            SPLITS=h.shape[0],
            G_PAD=self.G_PAD,
            BLOCK_C=self.tile.columns,
            **self.constants,
        )
        return out

    def outer(self, h: Tensor, y: Tensor, scaling: Tensor, out: Tensor) -> None:
        """Write the gradient of A or of B, seen as (G, R, C), from h and y (N, C)."""
        C = y.shape[1]
        offsets, row_token, _ = self.plan
        grid = (triton.cdiv(C, self.tile.columns), triton.cdiv(self.R, self.tile.rank), self.G)
        _outer_kernel[grid](
            h,
            y,
            offsets,
            row_token,
            scaling,
            self.ranks,
            out,
            self.N,
            C,
            self.R,
            *y.stride(),
            *out.stride(),
            SPLITS=h.shape[0],
            BLOCK_C=self.tile.columns,
            **self.constants | {"BLOCK_N": self.tile.contracted},
        )

    def scaling_gradient(self, h: Tensor, dh: Tensor) -> Tensor:
        out = torch.empty(self.G, dtype=torch.float32, device=h.device)
        constants = {k: v for k, v in self.constants.items() if k != "INTERPRET"}
        _scaling_gradient_kernel[(self.G,)](
            h,
            dh,
            self.plan[0],
            self.ranks,
            out,
            self.N,
            self.R,
            SPLITS=h.shape[0],
            GRAD_SPLITS=dh.shape[0],
            **constants,
        )
        return out


def grouped_lora_triton(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    base: Tensor | None,
    batch_invariant: bool = False,
) -> Tensor:
    """Return the delta (N, O), or `base` with the delta added in place (see `moe_kernels.grouped_lora`)."""
    if x.shape[0] == 0 or B.shape[1] == 0:
        return x.new_empty(x.shape[0], B.shape[1]) if base is None else base
    call = _Call(x, A, groups, ranks, batch_invariant)
    return call.expand(call.shrink(x, A), B, scaling.contiguous(), base, x.dtype)


def grouped_lora_backward_triton(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    need: list[bool],
) -> tuple[Tensor, ...]:
    """Return the gradients of x, A, B and scaling; empty where not needed."""
    need_x, need_A, need_B, need_scaling = need
    if x.shape[0] == 0:
        return tuple(t.new_zeros(t.shape if n else (0,)) for t, n in zip((x, A, B, scaling), need, strict=True))
    call, scaling = _Call(x, A, groups, ranks), scaling.contiguous()
    h = call.shrink(x, A) if need_B or need_scaling else None
    dh = call.shrink(grad, B.transpose(1, 2)) if need_x or need_A or need_scaling else None
    grad_x, grad_A, grad_B, grad_scaling = (
        t.new_empty(t.shape if n else (0,)) for t, n in zip((x, A, B, scaling), need, strict=True)
    )
    if need_x:
        assert dh is not None
        grad_x = call.expand(dh, A.transpose(1, 2), scaling, None, x.dtype)
    if need_A:
        assert dh is not None
        call.outer(dh, x, scaling, grad_A)
    if need_B:
        assert h is not None
        call.outer(h, grad, scaling, grad_B.transpose(1, 2))
    if need_scaling:
        assert h is not None and dh is not None
        grad_scaling = call.scaling_gradient(h, dh)
    return grad_x, grad_A, grad_B, grad_scaling
