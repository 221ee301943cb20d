"""What grouped_mm launches, and what the specimens of other products share."""

from __future__ import annotations

from typing import Any

from compiled import TARGETS, Specimen

from moe_kernels.backends.triton import row_reductions, tiles
from moe_kernels.backends.triton.grouped_mm_kernels import _grouped_mm_kernel
from moe_kernels.backends.triton.platform import Device
from moe_kernels.backends.triton.tiles import Tile

PROCESSORS = 132
# Sizes that are multiples of 16 in every model.
SIZES = ("H", "I", "O", "K_SIZE", "LEFT", "RIGHT")
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
    return frozenset(n for n, t in types.items() if t.startswith("*") or n.startswith("stride") or n in SIZES)


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


def row_dots() -> Specimen:
    types = {
        **{n: "*bf16" for n in ("x", "grad", "bias")},
        "a": "*fp32",
        "out": "*fp32",
        **{n: "*i32" for n in ("gather", "offsets")},
        **{n: "i32" for n in ("N", "E", "H", "O", "stride_a", "stride_x", "stride_grad")},
    }
    constants = {"E_PAD": 64, "ROWS": row_reductions.SLOTS, "COLUMNS": row_reductions.COLUMNS}
    constants |= {"GATHER": True, "BIAS": True}
    return specimen("row_dots", row_reductions._row_dots_kernel, types, constants, Tile(0, 0, 0, 4, 3))


def token_sum() -> Specimen:
    types = {
        **{n: "*bf16" for n in ("rows", "out")},
        **{n: "*i64" for n in ("order", "starts")},
        **{n: "i32" for n in ("H", "column_blocks", "stride_rows")},
    }
    constants = {"COLUMNS": row_reductions.COLUMNS, "INTERPRET": False}
    return specimen("token_sum", row_reductions._token_sum_kernel, types, constants, Tile(0, 0, 0, 4, 3))


def specimens(target: str) -> list[Specimen]:
    return [
        grouped_mm(target, "bf16", "many", False, "down"),
        grouped_mm(target, "bf16", "many", True, "rows gradient"),
        grouped_mm(target, "bf16", "some", False, "down"),
        grouped_mm(target, "bf16", "few", False, "down"),
        grouped_mm(target, "fp32", "many", False, "down"),
        row_dots(),
        token_sum(),
    ]
