"""What fused_experts launches beside grouped_mm's kernels."""

from __future__ import annotations

from typing import Any

from compiled import Specimen
from specimens_grouped_mm import ROWS, device, specimen, weight_constants, weight_types

from moe_kernels.backends.triton import decode, row_reductions, tiles, weight_gradients
from moe_kernels.backends.triton.activation_gradient import _activation_gradient_kernel
from moe_kernels.backends.triton.up_projection import _up_projection_kernel

SILU = {"GATED": True, "INTERLEAVED": False, "TRANSPOSED": False, "ACTIVATION": "silu", "BIAS": False, "LIMIT": None}
GELU = {"GATED": False, "INTERLEAVED": False, "TRANSPOSED": False, "ACTIVATION": "gelu", "BIAS": True, "LIMIT": None}
GPT_OSS = {"GATED": True, "INTERLEAVED": True, "TRANSPOSED": True, "ACTIVATION": "gpt_oss", "BIAS": True, "LIMIT": None}
CLAMPED = SILU | {"LIMIT": 10.0}


def _itemsize(kind: str) -> int:
    return 4 if kind == "fp32" else 2


def _integers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def up_projection(target: str, kind: str, rows: str, save: bool, flags: dict[str, Any], name: str) -> Specimen:
    where = device(target)
    gated = flags["GATED"]
    simple = gated and not flags["INTERLEAVED"] and not flags["BIAS"]
    tile = tiles.up_projection_tile(where, _itemsize(kind), ROWS[rows] * 64, 64, simple)
    columns = tile.columns // 2 if gated else tile.columns
    descriptor = where.architecture >= 90 and kind != "fp32"
    read = tile.columns if flags["INTERLEAVED"] else columns
    types = {
        **{n: f"*{kind}" for n in ("x", "bias", "act", "pre")},
        **{n: "*i32" for n in ("gather", "offsets")},
        **_integers("E", "N", "H", "I", "column_blocks", "stride_x"),
        **weight_types(kind, tile, read, flags["TRANSPOSED"], descriptor),
    }
    constants = weight_constants(tile, columns, flags["TRANSPOSED"], descriptor) | flags | {"SAVE": save}
    if not flags["BIAS"]:
        constants["bias"] = None
    return specimen(f"up_projection-{kind}-{rows}-{name}", _up_projection_kernel, types, constants, tile)


def activation_gradient(target: str, kind: str, rows: str, flags: dict[str, Any], name: str) -> Specimen:
    where = device(target)
    # The weight as its gradient sees it lies the other way round.
    flags = {k: v for k, v in flags.items() if k != "BIAS"} | {"TRANSPOSED": not flags["TRANSPOSED"]}
    tile = tiles.activation_gradient_tile(where, _itemsize(kind), ROWS[rows] * 64, 64, flags["INTERLEAVED"])
    descriptor = where.architecture >= 90 and kind != "fp32"
    types = {
        **{n: f"*{kind}" for n in ("grad", "pre", "grad_pre", "weighted_act")},
        **{n: "*i32" for n in ("gather", "offsets")},
        **{n: "*fp32" for n in ("row_weight", "row_sums")},
        **_integers("E", "N", "H", "I", "column_blocks", "stride_grad"),
        **weight_types(kind, tile, tile.columns, flags["TRANSPOSED"], descriptor),
    }
    constants = weight_constants(tile, tile.columns, flags["TRANSPOSED"], descriptor) | flags
    constants |= {n: True for n in ("NEED_PRE", "NEED_ACT", "NEED_SUMS")}
    return specimen(f"activation_gradient-{kind}-{rows}-{name}", _activation_gradient_kernel, types, constants, tile)


def weight_gradient(target: str, kind: str, gathered: str) -> Specimen:
    tile = tiles.gradient_tile(device(target), _itemsize(kind))
    types = {
        **{n: f"*{kind}" for n in ("left", "right", "out")},
        **{n: "*i32" for n in ("left_gather", "right_gather", "offsets")},
        **_integers("LEFT", "RIGHT", "left_blocks", "right_blocks", "stride_left", "stride_right"),
    }
    constants = {
        "right_gather" if gathered == "left" else "left_gather": None,
        "BLOCK_LEFT": tile.rows,
        "BLOCK_RIGHT": tile.columns,
        "BLOCK_ROWS": tile.k,
        "GROUP": tiles.GROUP_ROWS,
        "GATHER_LEFT": gathered == "left",
        "GATHER_RIGHT": gathered == "right",
        "WHOLE_LEFT": True,
        "WHOLE_RIGHT": True,
        "INTERPRET": False,
    }
    kernel = weight_gradients._weight_gradient_kernel
    return specimen(f"weight_gradient-{kind}-{gathered}", kernel, types, constants, tile)


def bias_gradient() -> Specimen:
    types = {
        **{n: "*bf16" for n in ("grad", "out")},
        **{n: "*i32" for n in ("gather", "offsets")},
        "row_weight": "*fp32",
        **_integers("O", "column_blocks", "stride_grad"),
    }
    constants = {
        "BLOCK_ROWS": weight_gradients.SUM_ROWS,
        "BLOCK_COLUMNS": weight_gradients.SUM_COLUMNS,
        "GATHER": True,
        "WEIGHTED": True,
        "INTERPRET": False,
    }
    return specimen(
        "bias_gradient", weight_gradients._bias_gradient_kernel, types, constants, tiles.Tile(0, 0, 0, 4, 3)
    )


def decode_up(target: str, T: int, flags: dict[str, Any], name: str) -> Specimen:
    where = device(target)
    tile = tiles.decode_tile(where, 2, T, 8 * T, min(8 * T, 64), 2048, flags["TRANSPOSED"])
    columns = tile.columns // 2
    descriptor = where.architecture >= 90
    types = {
        **{n: "*bf16" for n in ("x", "bias", "act")},
        "indices": "*i32",
        **_integers("N", "E", "H", "I", "column_blocks", "stride_x"),
        **weight_types(
            "bf16", tile, tile.columns if flags["INTERLEAVED"] else columns, flags["TRANSPOSED"], descriptor
        ),
    }
    constants = weight_constants(tile, columns, flags["TRANSPOSED"], descriptor) | flags
    constants = {k: v for k, v in constants.items() if k not in ("E_PAD", "GROUP_ROWS")}
    constants |= {"K": 8, "SLOTS": max(16, 8 * T), "BY_SLOT": T < 8}
    if not flags["BIAS"]:
        constants["bias"] = None
    return specimen(f"decode_up-T{T}-{name}", decode._decode_up_kernel, types, constants, tile)


def decode_down(target: str, T: int) -> Specimen:
    where = device(target)
    tile = tiles.decode_tile(where, 2, T, 8 * T, min(8 * T, 64), 2048, False)
    descriptor = where.architecture >= 90
    types = {
        "act": "*bf16",
        "indices": "*i32",
        "rows": "*fp32",
        **_integers("N", "E", "I", "H", "column_blocks"),
        **weight_types("bf16", tile, tile.columns, False, descriptor),
    }
    constants = weight_constants(tile, tile.columns, False, descriptor)
    constants = {k: v for k, v in constants.items() if k not in ("E_PAD", "GROUP_ROWS")}
    constants |= {"SLOTS": max(16, 8 * T), "BY_SLOT": T < 8, "bias": None, "BIAS": False}
    return specimen(f"decode_down-T{T}", decode._decode_down_kernel, types, constants, tile)


def decode_combine() -> Specimen:
    types = {
        "rows": "*fp32",
        "indices": "*i32",
        "weights": "*fp32",
        "out": "*bf16",
        **_integers("E", "H", "column_blocks"),
    }
    constants = {"K": 8, "COLUMNS": decode.COMBINED_COLUMNS, "INTERPRET": False}
    return specimen("decode_combine", decode._decode_combine_kernel, types, constants, tiles.Tile(0, 0, 0, 4, 3))


def slot_gradient() -> Specimen:
    types = {
        "row_sums": "*fp32",
        "slot_row": "*i32",
        "grad": "*bf16",
        "bias": "*bf16",
        "offsets": "*i32",
        "out": "*fp32",
        **_integers("N", "K", "E", "H", "blocks", "stride_grad"),
    }
    sizes = {"SLOTS": row_reductions.SLOTS, "COLUMNS": row_reductions.COLUMNS}
    constants = {"E_PAD": 64, "BLOCKS": 128, "BIAS": True, **sizes}
    kernel = row_reductions._slot_gradient_kernel
    return specimen("slot_gradient", kernel, types, constants, tiles.Tile(0, 0, 0, 4, 3))


def row_weight() -> Specimen:
    types = {"weights": "*fp32", "slot_row": "*i32", "row_weight": "*fp32", "N": "i32"}
    constants = {"BLOCK": row_reductions.WEIGHTS}
    return specimen("row_weight", row_reductions._row_weight_kernel, types, constants, tiles.Tile(0, 0, 0, 4, 3))


def specimens(target: str) -> list[Specimen]:
    return [
        up_projection(target, "bf16", "many", True, SILU, "training"),
        up_projection(target, "bf16", "many", False, SILU, "inference"),
        up_projection(target, "bf16", "some", False, SILU, "inference"),
        up_projection(target, "bf16", "few", False, SILU, "inference"),
        up_projection(target, "bf16", "many", True, GPT_OSS, "gpt_oss"),
        up_projection(target, "bf16", "many", True, CLAMPED, "clamped"),
        up_projection(target, "bf16", "many", True, GELU, "gelu"),
        up_projection(target, "fp32", "many", True, SILU, "training"),
        activation_gradient(target, "bf16", "many", SILU, "silu"),
        activation_gradient(target, "bf16", "some", SILU, "silu"),
        activation_gradient(target, "bf16", "many", GPT_OSS, "gpt_oss"),
        activation_gradient(target, "bf16", "many", CLAMPED, "clamped"),
        activation_gradient(target, "fp32", "many", SILU, "silu"),
        weight_gradient(target, "bf16", "left"),
        weight_gradient(target, "bf16", "right"),
        weight_gradient(target, "fp32", "left"),
        bias_gradient(),
        decode_up(target, 1, SILU, "silu"),
        decode_up(target, 8, SILU, "silu"),
        decode_up(target, 64, SILU, "silu"),
        decode_up(target, 1, GPT_OSS, "gpt_oss"),
        decode_down(target, 1),
        decode_down(target, 64),
        decode_combine(),
        slot_gradient(),
        row_weight(),
    ]
