"""Stacks of expert matrices in NF4 or int8, as the ops take them in place of a floating tensor.

Letters: E experts, O rows of a matrix, H values a row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from moe_kernels.number_formats import (
    NESTED_BLOCK,
    NF4_BLOCK,
    decode_expert,
    int8_encode,
    nested_encode,
    nf4_encode,
)

Self = TypeVar("Self", bound="QuantizedWeight")


class QuantizedWeight(ABC):
    """What the two formats have in common: a stack (E, O, H) whose values are a matter of `dequantize`.

    A weight has no floating dtype of its own; an op computes in the dtype of its x. It is a constant: no gradient.
    """

    format: ClassVar[str]

    @property
    @abstractmethod
    def data(self) -> Tensor:
        """The codes or values, E first."""

    @property
    @abstractmethod
    def scales(self) -> list[Tensor]:
        """What turns `data` into values, in the order of `number_formats.decode_expert`."""

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(E, O, H), whatever the bytes are packed into."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names of the fields, without those that are None."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in found.items() if value is not None}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of `data`: uint8 or int8."""
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, scales included."""
        return sum(value.numel() * value.element_size() for value in self.tensors().values())

    def to(self: Self, device: Any) -> Self:
        """Return the weight on a device."""
        return replace(self, **{name: value.to(device) for name, value in self.tensors().items()})  # type: ignore[type-var]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the values (E, O, H), computed in float32 and then cast: one value, whatever dtype reads it."""
        out_EOH = torch.empty(self.shape, dtype=dtype, device=self.device)
        for e in range(self.shape[0]):
            out_EOH[e] = decode_expert(self.format, self.data, self.scales, e)
        return out_EOH

    def _require(self, name: str, dtype: torch.dtype, shape: tuple[int, ...] | None) -> None:
        """Check one of the tensors; with no shape, it must have three dimensions."""
        value = getattr(self, name)
        # Each forward of a module comes by here: what is right passes quickly.
        if isinstance(value, Tensor) and value.dtype == dtype and value.device == self.data.device:
            if value.shape == shape if shape is not None else value.dim() == 3:
                return
        owner = f"{type(self).__name__}: {name}"
        if not isinstance(value, Tensor):
            raise TypeError(f"{owner}: expected a tensor, got {type(value).__name__}")
        if value.dtype != dtype:
            want, got = (str(kind).removeprefix("torch.") for kind in (dtype, value.dtype))
            raise TypeError(f"{owner}: expected dtype {want}, got {got}")
        if value.device != self.device:
            raise ValueError(f"{owner}: expected device {self.device}, got {value.device}")
        wanted = "three dimensions" if shape is None else f"shape {shape}"
        raise ValueError(f"{owner}: expected {wanted}, got {tuple(value.shape)}")


@dataclass(frozen=True, eq=False)
class Nf4Weight(QuantizedWeight):
    """(E, O, H) in NF4, with the bytes of bitsandbytes' `quantize_4bit(w, quant_type="nf4", blocksize=64)`.

    Attributes:
        codes: (E, O, H/2) uint8, two values a byte, the first in the high nibble. H is a multiple of 64, so that a
            block of 64 values lies in one row.
        absmax: (E·O·H/64) float32, each block's scale; or uint8, with the four below ("double quantization").
        nested_absmax: (⌈E·O·H/64/256⌉) float32.
        nested_code: (256) float32, the levels that the bytes of `absmax` stand for.
        offset: () float32, the scales' mean.
    """

    format: ClassVar[str] = "nf4"

    codes: Tensor
    absmax: Tensor
    nested_absmax: Tensor | None = None
    nested_code: Tensor | None = None
    offset: Tensor | None = None

    def __post_init__(self) -> None:
        self._require("codes", torch.uint8, None)
        E, O, H = self.shape
        if H % NF4_BLOCK:
            raise ValueError(f"Nf4Weight: codes: expected H % {NF4_BLOCK} == 0, got H={H}")
        blocks = E * O * H // NF4_BLOCK
        if self.nested_absmax is None and self.nested_code is None and self.offset is None:
            self._require("absmax", torch.float32, (blocks,))
            return
        self._require("absmax", torch.uint8, (blocks,))
        self._require("nested_absmax", torch.float32, (-(-blocks // NESTED_BLOCK),))
        self._require("nested_code", torch.float32, (256,))
        self._require("offset", torch.float32, ())

    @property
    def data(self) -> Tensor:
        return self.codes

    @property
    def scales(self) -> list[Tensor]:
        if self.nested_absmax is None or self.nested_code is None or self.offset is None:
            return [self.absmax]
        return [self.absmax, self.nested_absmax, self.nested_code, self.offset]

    @property
    def shape(self) -> torch.Size:
        E, O, half = self.codes.shape
        return torch.Size((E, O, 2 * half))

    @classmethod
    def from_bitsandbytes(cls, packed: Tensor, quant_state: Any, shape: tuple[int, int, int]) -> Nf4Weight:
        """Take over what bitsandbytes quantized; the bytes are shared, not copied.

        Args:
            packed: the codes that `bitsandbytes.functional.quantize_4bit` returned, of any shape.
            quant_state: its `QuantState`: NF4, block size 64; double-quantized with block size 256, or not.
            shape: (E, O, H) of the tensor, row-major.

        Raises:
            ValueError: another format, a size that does not fit, or bytes that bitsandbytes has reordered in place.
        """
        op = "Nf4Weight.from_bitsandbytes"
        for name, expected in (("quant_type", "nf4"), ("blocksize", NF4_BLOCK)):
            if getattr(quant_state, name) != expected:
                raise ValueError(f"{op}: quant_state.{name}: expected {expected!r}, got {getattr(quant_state, name)!r}")
        if getattr(quant_state, "packing_format_for_cpu", False):
            # A forward without gradients in eval mode does that on CPUs with AVX-512 BF16.
            raise ValueError(f"{op}: packed: expected codes in storage order, got codes repacked for the CPU kernel")
        E, O, H = shape
        codes = packed.detach().contiguous().view(-1).view(torch.uint8)
        if 2 * codes.numel() != math.prod(shape):
            raise ValueError(f"{op}: packed: expected {math.prod(shape) // 2} bytes for {shape}, got {codes.numel()}")
        if H % NF4_BLOCK:
            raise ValueError(f"{op}: shape: expected H % {NF4_BLOCK} == 0, got H={H}")
        codes = codes.view(E, O, H // 2)
        if quant_state.state2 is None:
            return cls(codes, quant_state.absmax.view(-1))
        nested = quant_state.state2
        if nested.blocksize != NESTED_BLOCK:
            raise ValueError(f"{op}: quant_state.state2.blocksize: expected {NESTED_BLOCK}, got {nested.blocksize}")
        return cls(codes, quant_state.absmax.view(-1), nested.absmax.view(-1), nested.code, quant_state.offset)


@dataclass(frozen=True, eq=False)
class Int8Weight(QuantizedWeight):
    """(E, O, H) in int8 with one scale for each output row.

    Attributes:
        values: (E, O, H) int8 within ±127.
        scale: (E, O) float32, the row's largest magnitude / 127; 0 for a row of zeros.
    """

    format: ClassVar[str] = "int8"

    values: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        self._require("values", torch.int8, None)
        self._require("scale", torch.float32, tuple(self.values.shape[:2]))

    @property
    def data(self) -> Tensor:
        return self.values

    @property
    def scales(self) -> list[Tensor]:
        return [self.scale]

    @property
    def shape(self) -> torch.Size:
        return self.values.shape


def _check_source(op: str, w: Tensor) -> None:
    if not isinstance(w, Tensor):
        raise TypeError(f"{op}: w: expected a tensor, got {type(w).__name__}")
    if w.dim() != 3:
        raise ValueError(f"{op}: w: expected shape (E, O, H), got {tuple(w.shape)}")
    if not w.is_floating_point():
        raise TypeError(f"{op}: w: expected a floating dtype, got {str(w.dtype).removeprefix('torch.')}")


def _check_finite(op: str, scale: Tensor, e: int) -> None:
    # A NaN or an infinity would turn its whole block into noise, silently.
    if not scale.device.type == "meta" and not bool(torch.isfinite(scale).all()):
        raise ValueError(f"{op}: w: expected finite values, got NaN or infinity in expert {e}")


@torch.no_grad()
def quantize_nf4(w: Tensor, double_quant: bool = True) -> Nf4Weight:
    """Quantize a stack of matrices to NF4, one expert at a time.

    Args:
        w: (E, O, H) floating, with any strides (pass `p.transpose(1, 2)` for a parameter (E, H, O)); H % 64 == 0.
        double_quant: store the scales in 8 bits.

    Raises:
        ValueError, TypeError: w does not fit, or is not finite.
    """
    _check_source("quantize_nf4", w)
    E, O, H = w.shape
    if H % NF4_BLOCK:
        raise ValueError(f"quantize_nf4: w: expected H % {NF4_BLOCK} == 0 (blocks lie within a row), got H={H}")
    codes = torch.empty(E, O, H // 2, dtype=torch.uint8, device=w.device)
    absmax = torch.empty(E, O * H // NF4_BLOCK, dtype=torch.float32, device=w.device)
    for e in range(E):
        codes[e], absmax[e] = nf4_encode(w[e])
        _check_finite("quantize_nf4", absmax[e], e)
    if double_quant:
        return Nf4Weight(codes, *nested_encode(absmax.view(-1)))
    return Nf4Weight(codes, absmax.view(-1))


@torch.no_grad()
def quantize_int8(w: Tensor) -> Int8Weight:
    """Quantize a stack of matrices to int8 with a scale for each output row, one expert at a time.

    Args:
        w: (E, O, H) floating, with any strides.

    Raises:
        ValueError, TypeError: w does not fit, or is not finite.
    """
    _check_source("quantize_int8", w)
    values = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    scale = torch.empty(w.shape[:2], dtype=torch.float32, device=w.device)
    for e in range(w.shape[0]):
        values[e], scale[e] = int8_encode(w[e])
        _check_finite("quantize_int8", scale[e], e)
    return Int8Weight(values, scale)


WEIGHTS: dict[str, type[QuantizedWeight]] = {"nf4": Nf4Weight, "int8": Int8Weight}
QUANTIZERS: dict[str, Callable[..., QuantizedWeight]] = {"nf4": quantize_nf4, "int8": quantize_int8}
