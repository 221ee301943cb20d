"""Launching the products with quantized weights (kernels: `quantized_kernels.py`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from moe_kernels.backends.triton import platform, tiles
from moe_kernels.backends.triton.dequantize import dequantize_experts, nested_or_none
from moe_kernels.backends.triton.grouped_mm_kernels import rows_of
from moe_kernels.backends.triton.number_formats import levels_on
from moe_kernels.backends.triton.platform import INTERPRETER, Device
from moe_kernels.backends.triton.quantized_kernels import (
    _quantized_mm_kernel,
    _quantized_up_kernel,
    _round_activation_kernel,
)
from moe_kernels.backends.triton.tiles import Tile

# Most rows per expert for which the weight is dequantized in the load of the product: one block of them, so that each
# value is dequantized once. Not yet measured.
FEW_ROWS = 16


@dataclass(frozen=True)
class Quantized:
    """A quantized stack (E, O, H): `data` and `scales` as in `number_formats.decode_expert`."""

    format: str
    data: Tensor
    scales: list[Tensor]

    @property
    def E(self) -> int:
        return self.data.shape[0]

    @property
    def columns(self) -> int:
        return self.data.shape[1]

    @property
    def k(self) -> int:
        return self.data.shape[2] * (2 if self.format == "nf4" else 1)

    @property
    def kind(self) -> str:
        """The format as the kernels have it: "int8", "nf4" or "nf4-nested"."""
        return f"{self.format}-nested" if len(self.scales) > 1 else self.format

    def arguments(self, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """Return what the kernels take: the data, four scales, and NF4's levels in `dtype`."""
        levels = levels_on(self.data.device, dtype) if self.format == "nf4" else None
        return (self.data.contiguous(), *nested_or_none([s.contiguous() for s in self.scales]), levels)

    def dequantized(self, offsets: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (E, O, H) in `dtype`, undefined for the experts without rows."""
        return dequantize_experts(self.format, self.data, self.scales, offsets, dtype)


def dequantizes_in_load(rows: int, E: int, batch_invariant: bool) -> bool:
    """Whether a product's weight is dequantized in its load; else as a whole, before an ordinary product.

    Where bits must not depend on the number of rows, always, since the two round differently.
    """
    return batch_invariant or rows <= FEW_ROWS * E


def quantized_tile(
    device: Device, kind: str, dynamic: bool, itemsize: int, rows: int, E: int, columns: int, batch_invariant: bool
) -> Tile:
    """Choose the tile for `rows` rows and weights with so many columns. `itemsize` is that of x's numbers.

    Sums of integers are exact, so that with `dynamic` no bit depends on the tile.
    """
    k = 64 if kind != "int8" or device.amd else 128
    if kind == "int8" and itemsize == 4:
        k = 32
    if device == INTERPRETER:
        return Tile(64 if batch_invariant or rows > FEW_ROWS * E else 16, 64, 64, 4, 2)
    if dynamic:
        if rows <= FEW_ROWS * E:
            return Tile(16, 64, 128, 4, 2 if device.amd else 4, 4)
        if rows <= 64 * E or device.architecture < 90:
            return Tile(64, 64, 128, 4, 2 if device.amd else 3, 2)
        return Tile(128, 128, 128, 8, 3, 1)
    if device.amd:
        # One for any number of rows, and nothing fetched ahead with 16-bit levels: more would spill.
        return Tile(16, 64, k, 4, 1 if kind != "int8" and itemsize == 2 else 2, 4)
    stages = 2 if itemsize == 4 else 4
    if batch_invariant:
        return Tile(tiles.INVARIANT_ROWS, 32, k, 4, stages, 2)
    # One token's experts have few columns: narrow blocks, so that every processor has some.
    blocks = min(rows, E) * columns // 64
    narrow = blocks < 2 * device.processors
    return Tile(16, 32 if narrow else 64, k, 4, stages, 4)


def look_up(device: Device, itemsize: int) -> str:
    """Return how NF4's levels are found (see `nf4_pairs`): by what follows the product's operand in its layout."""
    if device.amd:
        return "select"
    return "permute" if itemsize == 2 and device != INTERPRETER else "table"


def _constants(weight: Quantized, tile: Tile, x: Tensor) -> dict[str, Any]:
    return {
        "E_PAD": triton.next_power_of_2(weight.E + 1),
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_K": tile.k,
        "GROUP_ROWS": tiles.GROUP_ROWS,
        "FORMAT": weight.kind,
        "WHOLE_K": weight.k % tile.k == 0,
        "LOOK_UP": look_up(platform.device_of(x), x.element_size()),
        "INTERPRET": platform.interpreted(),
        **tile.options,
    }


def multiply_rows_quantized(
    x: Tensor,
    weight: Quantized,
    offsets: Tensor,
    gather: Tensor | None,
    *,
    dtype: torch.dtype,
    x_scale: Tensor | None = None,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    base: Tensor | None = None,
    zero_tail: bool = False,
    batch_invariant: bool = False,
) -> Tensor:
    """Return (N, O) in `dtype`: each row of x, or the row that `gather` (N) names, times its expert's weight.

    Args:
        x_scale: the scale of each row of an x in int8.
        zero_tail: write zeros (or `base`) to the rows from offsets[E] on, which are otherwise left undefined.
    """
    device, dynamic = platform.device_of(x), x_scale is not None
    N, O = x.shape[0] if gather is None else gather.shape[0], weight.columns
    out = torch.empty(N, O, dtype=dtype, device=x.device)
    if out.numel() == 0:
        return out
    tile = quantized_tile(device, weight.kind, dynamic, x.element_size(), N, weight.E, O, batch_invariant)
    column_blocks = triton.cdiv(O, tile.columns)
    x, base = rows_of(x), None if base is None else rows_of(base)
    _quantized_mm_kernel[(tiles.programs(device, tile, N, weight.E + int(zero_tail), column_blocks),)](
        x,
        x_scale,
        gather,
        *weight.arguments(x.dtype),
        None if bias is None else bias.contiguous(),
        None if row_scale is None else row_scale.contiguous(),
        base,
        offsets,
        out,
        weight.E,
        N,
        weight.k,
        O,
        weight.data.shape[2],
        column_blocks,
        x.stride(0),
        out.stride(0),
        0 if base is None else base.stride(0),
        DYNAMIC=dynamic,
        GATHER=gather is not None,
        BIAS=bias is not None,
        SCALE=row_scale is not None,
        BASE=base is not None,
        TAIL=zero_tail,
        **_constants(weight, tile, x),
    )
    return out


def up_projection_quantized(
    x: Tensor,
    weight: Quantized,
    bias: Tensor | None,
    offsets: Tensor,
    row_token: Tensor,
    activation: str,
    limit: float | None,
    gated: bool,
    interleaved: bool,
    save: bool,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the activation (N, I) and, with `save`, the pre-activation.

    From offsets[E] on, rows of the activation are undefined, and those of the pre-activation zero.
    """
    device, N = platform.device_of(x), row_token.shape[0]
    I = weight.columns // 2 if gated else weight.columns
    act = torch.empty(N, I, dtype=x.dtype, device=x.device)
    pre = torch.zeros((N, weight.columns) if save else (0,), dtype=x.dtype, device=x.device)
    if act.numel() == 0:
        return act, pre
    tile = quantized_tile(device, weight.kind, False, x.element_size(), N, weight.E, I, batch_invariant)
    column_blocks, x = triton.cdiv(I, tile.columns), rows_of(x)
    _quantized_up_kernel[(tiles.programs(device, tile, N, weight.E, column_blocks),)](
        x,
        row_token,
        *weight.arguments(x.dtype),
        None if bias is None else bias.contiguous(),
        offsets,
        act,
        pre,
        weight.E,
        N,
        weight.k,
        I,
        weight.data.shape[2],
        column_blocks,
        x.stride(0),
        ACTIVATION=activation,
        LIMIT=limit,
        GATED=gated,
        INTERLEAVED=interleaved,
        BIAS=bias is not None,
        SAVE=save,
        **_constants(weight, tile, x),
    )
    return act, pre


def rounded_activation(
    pre: Tensor, offsets: Tensor, activation: str, limit: float | None, gated: bool, interleaved: bool
) -> tuple[Tensor, Tensor]:
    """Return the activation of (N, 2I) as int8 (N, I) and its rows' scales (N); undefined from offsets[E] on."""
    N, width = pre.shape
    I = width // 2 if gated else width
    values = torch.empty(N, I, dtype=torch.int8, device=pre.device)
    scale = torch.empty(N, dtype=torch.float32, device=pre.device)
    if values.numel():
        _round_activation_kernel[(N,)](
            pre,
            offsets,
            values,
            scale,
            offsets.shape[0] - 1,
            I,
            COLUMNS=min(1024, triton.next_power_of_2(I)),
            ACTIVATION=activation,
            LIMIT=limit,
            GATED=gated,
            INTERLEAVED=interleaved,
            num_warps=4,
        )
    return values, scale
