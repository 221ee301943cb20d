"""What grouped_mm and the products of fused_experts launch."""

from __future__ import annotations

from typing import Any

from compiled import TARGETS, Specimen

from moe_kernels.backends.triton import tiles
from moe_kernels.backends.triton.grouped_mm_kernels import _grouped_mm_kernel
from moe_kernels.backends.triton.platform import Device
from moe_kernels.backends.triton.tiles import Tile
from moe_kernels.backends.triton.up_projection import _up_projection_kernel

PROCESSORS = 132
# Rows per expert: decode and small batches, some tens, training.
ROWS = {"few": 8, "some": 48, "many": 4096}


def device(target: str) -> Device:
    gpu, shared = TARGETS[target]
    amd = gpu.backend == "hip"
    return Device(0 if amd else int(gpu.arch), PROCESSORS, shared, amd)


def weight_types(kind: str, tile: Tile, columns: int, transposed: bool, descriptor: bool) -> dict[str, Any]:
    """Return the types of a weight's arguments."""
    block = f"1,{tile.k},{columns}" if transposed else f"1,{columns},{tile.k}"
    return {
        "w": f"tensordesc<{kind}[{block}]>" if descriptor else f"*{kind}",
        "stride_e": "i32",
        **{name: "i32" for name in ("stride_column", "stride_k")},
    }


def weight_constants(tile: Tile, columns: int, transposed: bool, descriptor: bool) -> dict[str, Any]:
    return {
        "stride_column" if transposed else "stride_k": 1,
        "E_PAD": 128,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": columns,
        "BLOCK_K": tile.k,
        "GROUP_ROWS": tiles.GROUP_ROWS,
        "TRANSPOSED": transposed,
        "DESCRIPTOR": descriptor,
        "WHOLE_COLUMNS": True,
        "WHOLE_K": True,
        "INTERPRET": False,
    }


def aligned(types: dict[str, str]) -> frozenset[str]:
    return frozenset(n for n, t in types.items() if t.startswith("*") or n.startswith("stride") or n in ("H", "I", "O"))


def specimen(name: str, kernel: Any, types: dict[str, str], constants: dict[str, Any], tile: Tile) -> Specimen:
    types = {n: t for n, t in types.items() if n not in constants}
    return Specimen(name, kernel, types, constants, aligned(types), tile.options)


def grouped_mm(target: str, kind: str, rows: str, transposed: bool, name: str) -> Specimen:
    where = device(target)
    itemsize = 4 if kind == "fp32" else 2
    tile = tiles.rows_tile(where, itemsize, ROWS[rows] * 64, 64)
    descriptor = where.architecture >= 90 and itemsize == 2
    types = {
        "x": f"*{kind}",
        "offsets": "*i32",
        "out": f"*{kind}",
        **{n: "i32" for n in ("E", "N", "K_SIZE", "O", "column_blocks", "stride_x", "stride_out")},
        **weight_types(kind, tile, tile.columns, transposed, descriptor),
    }
    nothing = {n: None for n in ("gather", "bias", "row_scale", "base")}
    flags = {n: False for n in ("GATHER", "BIAS", "SCALE", "BASE", "TAIL")}
    constants = weight_constants(tile, tile.columns, transposed, descriptor)
    constants |= {**nothing, **flags, "stride_base": 0}
    return specimen(f"grouped_mm-{kind}-{rows}-{name}", _grouped_mm_kernel, types, constants, tile)


def up_projection(target: str, kind: str, rows: str, save: bool, name: str, **changes: Any) -> Specimen:
    where = device(target)
    itemsize = 4 if kind == "fp32" else 2
    tile = tiles.rows_tile(where, itemsize, ROWS[rows] * 64, 64)
    flags = {"GATED": True, "INTERLEAVED": False, "TRANSPOSED": False, "ACTIVATION": "silu", "BIAS": False} | changes
    columns = tile.columns // 2 if flags["GATED"] else tile.columns
    descriptor = where.architecture >= 90 and itemsize == 2
    read = tile.columns if flags["INTERLEAVED"] else columns
    types = {
        "x": f"*{kind}",
        "gather": "*i32",
        "bias": f"*{kind}",
        "offsets": "*i32",
        "act": f"*{kind}",
        "pre": f"*{kind}",
        **{n: "i32" for n in ("E", "N", "H", "I", "column_blocks", "stride_x")},
        **weight_types(kind, tile, read, flags["TRANSPOSED"], descriptor),
    }
    constants = weight_constants(tile, columns, flags["TRANSPOSED"], descriptor) | flags | {"SAVE": save}
    if not flags["BIAS"]:
        constants["bias"] = None
    return specimen(f"up_projection-{kind}-{rows}-{name}", _up_projection_kernel, types, constants, tile)


def specimens(target: str) -> list[Specimen]:
    return [
        grouped_mm(target, "bf16", "many", False, "down"),
        grouped_mm(target, "bf16", "many", True, "rows gradient"),
        grouped_mm(target, "bf16", "some", False, "down"),
        grouped_mm(target, "bf16", "few", False, "down"),
        grouped_mm(target, "fp32", "many", False, "down"),
        up_projection(target, "bf16", "many", True, "training"),
        up_projection(target, "bf16", "many", False, "inference"),
        up_projection(target, "bf16", "some", False, "inference"),
        up_projection(target, "bf16", "few", False, "inference"),
        up_projection(
            target,
            "bf16",
            "many",
            True,
            "gpt_oss",
            ACTIVATION="gpt_oss",
            INTERLEAVED=True,
            TRANSPOSED=True,
            BIAS=True,
        ),
        up_projection(target, "fp32", "many", True, "training"),
    ]
