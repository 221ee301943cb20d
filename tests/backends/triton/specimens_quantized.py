"""The specializations of the kernels with quantized weights to compile."""

from __future__ import annotations

from typing import Any

from compiled import TARGETS, Specimen

from moe_kernels.backends.triton import quantized, quantized_kernels, tiles
from moe_kernels.backends.triton.platform import Device

E = 64
DTYPES = {"bf16": ("*bf16", 2), "fp32": ("*fp32", 4), "i8": ("*i8", 1)}


def _common(device: Device, kind: str, x: str, tile: tiles.Tile) -> tuple[dict[str, str], dict[str, Any]]:
    floating = "*bf16" if x == "i8" else DTYPES[x][0]
    types = {"x": DTYPES[x][0], "gather": "*i32", "offsets": "*i32", "x_scale": "*fp32", "levels": floating}
    types |= {"w": "*i8" if kind == "int8" else "*u8", "scale": "*u8" if kind == "nf4-nested" else "*fp32"}
    types |= dict.fromkeys(("nested_absmax", "nested_code", "offset", "row_scale"), "*fp32")
    types |= dict.fromkeys(("bias", "base", "out", "act", "pre"), floating)
    sizes = ("E", "N", "H", "O", "I", "bytes", "column_blocks", "stride_x", "stride_out", "stride_base")
    types |= dict.fromkeys(sizes, "i32")
    constants: dict[str, Any] = {
        "E_PAD": 128,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": tile.columns,
        "BLOCK_K": tile.k,
        "GROUP_ROWS": tiles.GROUP_ROWS,
        "FORMAT": kind,
        "WHOLE_K": True,
        "LOOK_UP": quantized.look_up(device, DTYPES[x][1]),
        "INTERPRET": False,
    }
    if kind != "nf4-nested":
        constants |= dict.fromkeys(("nested_absmax", "nested_code", "offset"))
    if kind == "int8":
        constants["levels"] = None
    return types, constants


def _specimen(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], tile: tiles.Tile) -> Specimen:
    types = {n: types[n] for n in kernel.arg_names if n not in constants}
    aligned = frozenset(types) - {"E", "N", "column_blocks", "offset"}
    return Specimen(name, kernel, types, constants, aligned, tile.options)


def _mm(device: Device, kind: str, x: str, rows: int, label: str, invariant: bool = False) -> Specimen:
    dynamic = x == "i8"
    tile = quantized.quantized_tile(device, kind, dynamic, DTYPES[x][1], rows * E, E, 2048, invariant)
    types, constants = _common(device, kind, x, tile)
    constants |= {"DYNAMIC": dynamic, "GATHER": dynamic, "SCALE": False, "BASE": False, "TAIL": False, "BIAS": dynamic}
    constants |= {"row_scale": None, "base": None, "stride_base": 0}
    constants |= {} if dynamic else {"x_scale": None, "gather": None, "bias": None}
    return _specimen(f"quantized-mm-{label}", quantized_kernels._quantized_mm_kernel, types, constants, tile)


def _up(device: Device, kind: str, x: str, rows: int, label: str, invariant: bool = False, **flags: Any) -> Specimen:
    tile = quantized.quantized_tile(device, kind, False, DTYPES[x][1], rows, E, 1024, invariant)
    types, constants = _common(device, kind, x, tile)
    constants |= {
        "ACTIVATION": "silu",
        "LIMIT": None,
        "GATED": True,
        "INTERLEAVED": False,
        "BIAS": False,
        "SAVE": False,
    } | flags
    if not constants["BIAS"]:
        constants["bias"] = None
    return _specimen(f"quantized-up-{label}", quantized_kernels._quantized_up_kernel, types, constants, tile)


def specimens(target: str) -> list[Specimen]:
    gpu, shared = TARGETS[target]
    amd = gpu.backend == "hip"
    device = Device(0 if amd else int(gpu.arch), 132, shared, amd)
    rounding = {"COLUMNS": 1024, "ACTIVATION": "silu", "LIMIT": None, "GATED": True, "INTERLEAVED": False}
    types = {"pre": "*bf16", "offsets": "*i32", "values": "*i8", "scale": "*fp32", "E": "i32", "I": "i32"}
    kernel = quantized_kernels._round_activation_kernel
    return [
        _mm(device, "nf4-nested", "bf16", 8, "nf4-bf16"),
        _mm(device, "nf4-nested", "bf16", 8, "nf4-bf16-invariant", invariant=True),
        _mm(device, "nf4", "fp32", 8, "nf4-fp32"),
        _mm(device, "int8", "bf16", 8, "int8-bf16"),
        _mm(device, "int8", "fp32", 8, "int8-fp32", invariant=True),
        _mm(device, "int8", "i8", 8, "dynamic-few"),
        _mm(device, "int8", "i8", 48, "dynamic-some"),
        _mm(device, "int8", "i8", 4096, "dynamic-many"),
        _up(device, "nf4", "bf16", 8, "nf4-bf16-one-token"),
        _up(device, "nf4-nested", "bf16", 512, "nf4-bf16"),
        _up(
            device,
            "nf4-nested",
            "bf16",
            512,
            "nf4-gpt-oss",
            invariant=True,
            ACTIVATION="gpt_oss",
            INTERLEAVED=True,
            BIAS=True,
        ),
        _up(device, "int8", "bf16", 512, "int8-bf16", SAVE=True),
        Specimen("round-activation-bf16", kernel, types, rounding, frozenset(types) - {"E"}),
    ]
