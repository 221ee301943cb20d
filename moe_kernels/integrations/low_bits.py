"""Experts that a model of transformers keeps in 8 or 4 bits, and how they become ordinary ones.

Where there is no GPU for them, transformers turns experts in FP8 (DeepSeek-V3) and MXFP4 (GPT-OSS) into the model's
dtype as it loads them, and warns. With one it puts modules of its own in their place: `FP8Experts`, with block scales
beside the weights, and `Mxfp4GptOssExperts`, whose bytes are in the order of one kernel. The first are read here; the
others have to be loaded anew.

Letters: E experts, O rows of a matrix, H values a row.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from moe_kernels.integrations.recognition import has_gate, is_experts
from moe_kernels.quantized.experts import Packed

# The sixteen values of a 4-bit float with 2 exponent bits and 1 mantissa bit (OCP Microscaling Formats 1.0, 5.3.3).
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_FP4_BLOCK = 32


def low_bits(module: nn.Module) -> str | None:
    """Name the format, "FP8" or "FP4", of an expert module that keeps its weights in one; None for any other."""
    down = module._parameters.get("down_proj")
    if down is None or down.element_size() > 1 or not is_experts(module):
        return None
    return "FP8" if down.is_floating_point() else "FP4"


def in_the_order_of_a_kernel(model: nn.Module) -> list[str]:
    """The paths of experts in MXFP4 that transformers has arranged for its own kernel."""
    return [path for path, module in model.named_modules() if hasattr(module, "down_proj_precision_config")]


def _up(module: nn.Module) -> str:
    return "gate_up_proj" if has_gate(module) else "up_proj"


def _shape(module: nn.Module, name: str) -> tuple[int, int, int]:
    E, O, H = getattr(module, name).shape
    return (E, O, 2 * H) if low_bits(module) == "FP4" else (E, O, H)


def _dtype(module: nn.Module) -> torch.dtype:
    """What the experts become: the dtype of the model's configuration, or bfloat16."""
    dtype = getattr(module.config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.itemsize > 1 else torch.bfloat16


def _spread(scale: Tensor, size: int, block: int, dim: int) -> Tensor:
    return scale.repeat_interleave(block, dim).narrow(dim, 0, size)


def _times_scale(wide_OH: Tensor, scale: Tensor, block: tuple[int, int] | None, halves: int) -> Tensor:
    """Multiply a matrix with the scales of its blocks of rows and columns.

    Args:
        wide_OH: (O, H) float32.
        scale: (blocks of rows, blocks of columns).
        block: rows and columns of a block; None: one scale for the matrix.
        halves: 2 where gate and up have blocks of their own, which matters if the rows of one are no whole blocks.
    """
    O, H = wide_OH.shape
    rows, columns = (O // halves, H) if block is None else block
    parts = [_spread(part, O // halves, rows, 0) for part in scale.float().chunk(halves)]
    return wide_OH * _spread(torch.cat(parts), H, columns, 1)


def _fp4(packed: Tensor) -> Tensor:
    """Two values of a byte, the low half first, as float32."""
    values = torch.tensor(_FP4_VALUES, device=packed.device)
    byte = packed.view(torch.uint8)
    return values[torch.stack((byte & 0xF, byte >> 4), -1).flatten(-2).int()]


def _scales(module: nn.Module, name: str) -> tuple[Tensor, tuple[int, int] | None, int]:
    """Return a projection's scales, and the `block` and `halves` of `_times_scale`."""
    scale, kind, (_, O, H) = getattr(module, f"{name}_scale_inv", None), low_bits(module), _shape(module, name)
    block: tuple[int, int] | None = (1, _FP4_BLOCK) if kind == "FP4" else module.block_size  # type: ignore[assignment]
    whole = (1, 1) if block is None else (-(-O // block[0]), -(-H // block[1]))
    in_halves = (2, 1) if block is None else (2 * -(-O // 2 // block[0]), whole[1])
    if isinstance(scale, Tensor) and scale.dim() == 3:
        if name == "gate_up_proj" and tuple(scale.shape[1:]) == in_halves:
            return scale, block, 2
        if tuple(scale.shape[1:]) == whole:
            return scale, block, 1
    got = tuple(scale.shape[1:]) if isinstance(scale, Tensor) else "none"
    owner = type(module).__name__
    raise ValueError(f"moe_kernels: {owner}.{name}_scale_inv: expected {kind} scales {whole} an expert, got {got}")


def values(module: nn.Module, name: str) -> Tensor:
    """Return the values (E, O, H) of a projection in the model's dtype.

    They are multiplied with their scales in float32 and rounded once.

    Raises:
        ValueError: its scales are missing, or are no grid that fits.
    """
    scale, block, halves = _scales(module, name)
    weight, kind, (E, O, H) = getattr(module, name), low_bits(module), _shape(module, name)
    out = torch.empty(E, O, H, dtype=_dtype(module), device=weight.device)
    with torch.no_grad():
        for e in range(E):
            wide_OH = _fp4(weight[e]) if kind == "FP4" else weight[e].float()
            out[e] = _times_scale(wide_OH, scale[e], block, halves)
    return out


PACKED = Packed(_shape, values)


def widen(module: nn.Module) -> str:
    """Turn an expert module in low bits into an ordinary one, in place, one projection at a time; say what was done.

    Its parameters stay frozen where they were integers, and its state_dict loses the scales. A configuration that says
    which modules are in low bits is told by `widen_all`, which knows the module's name.
    """
    kind, before, after = low_bits(module), 0, 0
    for name in (_up(module), "down_proj"):
        old = getattr(module, name)
        wide = values(module, name)
        before, after = before + old.nbytes, after + wide.nbytes
        setattr(module, name, nn.Parameter(wide, old.requires_grad and old.is_floating_point()))
        delattr(module, f"{name}_scale_inv")
        # transformers' own forward looks for it, and leaves it alone beside such weights.
        ones = torch.ones(wide.shape[0], 1, 1, device=wide.device)
        module.register_buffer(f"{name}_scale_inv", ones, persistent=False)
    dtype = str(_dtype(module)).removeprefix("torch.")
    return f"{kind} to {dtype}, {before / 2**20:.1f} MiB to {after / 2**20:.1f} MiB"


def to_widen(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the paths and modules of all experts in low bits.

    Raises:
        ValueError: some are in the order of another kernel, or lack scales.
    """
    foreign = in_the_order_of_a_kernel(model)
    if foreign:
        raise ValueError(
            f"moe_kernels: {foreign[0]} and {len(foreign) - 1} more: experts in MXFP4, in the order of transformers' "
            "own kernel; load the model with quantization_config=Mxfp4Config(dequantize=True)"
        )
    found = [(path, module) for path, module in model.named_modules() if low_bits(module)]
    for _, module in found:
        for name in (_up(module), "down_proj"):
            _scales(module, name)
    return found


def widen_all(model: nn.Module, found: list[tuple[str, nn.Module]]) -> None:
    """Turn the experts of a model that `to_widen` has found into ordinary ones, and warn."""
    if not found:
        return
    done = [widen(module) for _, module in found]
    _keep_out_of(model, [path for path, _ in found])
    warnings.warn(
        f"moe_kernels: the experts of {len(found)} modules were converted, in each from {done[0]}; "
        "quantize_experts(model, 'int8' or 'nf4') makes them small again, or instead of this",
        stacklevel=3,
    )


def _keep_out_of(model: nn.Module, paths: list[str]) -> None:
    """Let the configuration say that these modules are not quantized: a saved model is loaded by what it says."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is not None and hasattr(config, "modules_to_not_convert"):
        # Once the list says anything, it has to say what was left out by default, too.
        known = getattr(getattr(model, "hf_quantizer", None), "modules_to_not_convert", None)
        config.modules_to_not_convert = [*(known or config.modules_to_not_convert or []), *paths]


def widen_at_first_use(module: nn.Module) -> None:
    """Turn one module into an ordinary one in its first forward, and warn.

    Raises:
        RuntimeError: the forward is being compiled.
    """
    if torch.compiler.is_compiling():
        raise RuntimeError("moe_kernels: experts in FP8 are converted once: call moe_kernels.patch(model) first")
    done = widen(module)
    warnings.warn(
        f"moe_kernels: {type(module).__name__} was converted at its first use, {done}; moe_kernels.patch(model) does "
        "it beforehand, and quantize_experts(model, 'int8' or 'nf4') to fewer bits",
        stacklevel=2,
    )
