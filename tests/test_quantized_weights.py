"""Nf4Weight and Int8Weight: their bytes, what they refuse, and the memory that making them takes."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moe_kernels.quantized import Int8Weight, Nf4Weight, quantize_int8, quantize_nf4

FORMATS = pytest.mark.parametrize("format", ["nf4", "int8"])


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("double_quant", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 5, 64), (2, 37, 192), (4, 256, 128)], ids=str)
def test_nf4_has_the_bytes_of_bitsandbytes(shape, double_quant, dtype):
    functional = pytest.importorskip("bitsandbytes.functional")
    torch.manual_seed(0)
    w = (torch.randn(shape) * torch.rand(shape[0], shape[1], 1)).to(dtype)
    w[-1, -1, :64] = 0
    packed, state = functional.quantize_4bit(
        w.reshape(-1), quant_type="nf4", blocksize=64, compress_statistics=double_quant
    )
    mine, theirs = quantize_nf4(w, double_quant), Nf4Weight.from_bitsandbytes(packed, state, shape)
    assert mine.tensors().keys() == theirs.tensors().keys()
    for name, value in mine.tensors().items():
        assert torch.equal(_bits(value), _bits(theirs.tensors()[name])), name
    assert torch.equal(mine.dequantize(dtype), functional.dequantize_4bit(packed, state).view(shape))


def test_from_bitsandbytes_refuses_what_it_cannot_read():
    functional = pytest.importorskip("bitsandbytes.functional")
    w = torch.randn(2, 4, 64)
    packed, state = functional.quantize_4bit(w, quant_type="fp4", blocksize=64)
    with pytest.raises(ValueError, match="quant_state.quant_type: expected 'nf4', got 'fp4'"):
        Nf4Weight.from_bitsandbytes(packed, state, (2, 4, 64))
    packed, state = functional.quantize_4bit(w, quant_type="nf4", blocksize=128)
    with pytest.raises(ValueError, match="quant_state.blocksize: expected 64, got 128"):
        Nf4Weight.from_bitsandbytes(packed, state, (2, 4, 64))
    packed, state = functional.quantize_4bit(w, quant_type="nf4", blocksize=64)
    with pytest.raises(ValueError, match=r"packed: expected 128 bytes for \(1, 4, 64\), got 256"):
        Nf4Weight.from_bitsandbytes(packed, state, (1, 4, 64))
    state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="storage order"):
        Nf4Weight.from_bitsandbytes(packed, state, (2, 4, 64))


def test_int8_scales_and_rounding():
    w = torch.tensor([[[127.0, 0.5, 1.5, -2.5, -126.6], [0, 0, 0, 0, 0], [1e-3, -1e-3, 0, 5e-4, 2e-4]]])
    weight = quantize_int8(w)
    assert weight.values[0, 0].tolist() == [127, 0, 2, -2, -127]
    assert weight.scale[0, :2].tolist() == [1.0, 0.0] and not weight.values[0, 1].any()
    assert torch.isfinite(weight.dequantize()).all()
    assert ((weight.dequantize() - w).abs() <= weight.scale[..., None] / 2 * (1 + 1e-6)).all()


@FORMATS
def test_a_transposed_parameter_is_quantized_from_its_transpose(format):
    quantize = {"nf4": quantize_nf4, "int8": quantize_int8}[format]
    w = torch.randn(3, 64, 5)
    mine, straight = quantize(w.transpose(1, 2)), quantize(w.transpose(1, 2).contiguous())
    for name, value in mine.tensors().items():
        assert torch.equal(value, straight.tensors()[name])
    assert mine.data.is_contiguous()


REFUSED = {
    "H": (lambda: quantize_nf4(torch.zeros(2, 3, 96)), ValueError, r"quantize_nf4: w: expected H % 64 == 0.*got H=96"),
    "shape": (lambda: quantize_int8(torch.zeros(3, 64)), ValueError, r"w: expected shape \(E, O, H\), got \(3, 64\)"),
    "dtype": (lambda: quantize_int8(torch.zeros(1, 3, 64).int()), TypeError, "floating dtype, got int32"),
    "not a tensor": (lambda: quantize_nf4([1.0]), TypeError, "expected a tensor, got list"),
    "NaN": (lambda: quantize_nf4(torch.full((2, 3, 64), torch.nan)), ValueError, "finite values.* expert 0"),
    "inf": (lambda: quantize_int8(torch.full((2, 3, 64), torch.inf)), ValueError, "finite values.* expert 0"),
    "codes": (lambda: Nf4Weight(torch.zeros(2, 3, 32), torch.zeros(6)), TypeError, "codes: expected dtype uint8"),
    "absmax": (
        lambda: Nf4Weight(torch.zeros(2, 3, 32, dtype=torch.uint8), torch.zeros(5)),
        ValueError,
        r"Nf4Weight: absmax: expected shape \(6,\), got \(5,\)",
    ),
    "scale": (
        lambda: Int8Weight(torch.zeros(2, 3, 32, dtype=torch.int8), torch.zeros(2, 3).half()),
        TypeError,
        "Int8Weight: scale: expected dtype float32, got float16",
    ),
}


@pytest.mark.parametrize("call,error,message", REFUSED.values(), ids=REFUSED.keys())
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


class _LargestTensor(TorchDispatchMode):
    """Records the most elements of a floating tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        fresh = isinstance(out, torch.Tensor) and out.is_floating_point() and not out._is_view()
        if fresh and not func.is_view:
            self.largest = max(self.largest, out.numel())
        return out


@FORMATS
def test_no_full_precision_copy_of_all_experts(format):
    w = torch.randn(16, 128, 64, dtype=torch.bfloat16)
    with _LargestTensor() as seen:
        {"nf4": quantize_nf4, "int8": quantize_int8}[format](w.transpose(1, 2) if format == "int8" else w)
    assert 0 < seen.largest <= 128 * 64
