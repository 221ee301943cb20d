"""The specializations of the `grouped_lora` kernels to compile: a rank of 16 in bfloat16 and in float32, mixed ranks up
to 128 in float16, and one row."""

from __future__ import annotations

from typing import Any

from compiled import TARGETS, Specimen

from moe_kernels.backends.triton import grouped_lora, grouped_lora_kernels
from moe_kernels.backends.triton.platform import Device


def _specimen(
    name: str, kernel: Any, dtype: str, tile: Any, constants: dict[str, Any], unit: tuple[str, ...]
) -> Specimen:
    fixed = {"BLOCK_R": tile.rank, "BLOCK_N": tile.rows, "INTERPRET": False, "G_PAD": 32} | constants
    fixed |= dict.fromkeys(unit, 1)
    if not fixed["MIXED"]:
        fixed["ranks"] = None
    types = {n: "i32" for n in kernel.arg_names}
    types |= dict.fromkeys(("x", "A", "B", "y", "base", "out"), f"*{dtype}")
    types |= {"h": "*fp32", "dh": "*fp32", "scaling": "*fp32"}
    types |= dict.fromkeys(("offsets", "row_token", "slot_row", "ranks"), "*i32")
    fixed = {n: v for n, v in fixed.items() if n in kernel.arg_names}
    types = {n: types[n] for n in kernel.arg_names if n not in fixed}
    aligned = frozenset(types) - {"N", "G", "tiles_most"}
    return Specimen(name, kernel, types, fixed, aligned, {"num_warps": tile.warps, "num_stages": tile.stages})


def _forward(dtype: str, tile: Any, mixed: bool, base: bool, parts: int, one_row: bool = False) -> list[Specimen]:
    label = f"{dtype}-R{tile.rank}-rows{tile.rows}" + ("-mixed" if mixed else "") + ("-one-row" if one_row else "")
    one = ("N",) if one_row else ()
    shrink = {"MIXED": mixed, "BLOCK_H": tile.terms}
    expand = {"MIXED": mixed, "BLOCK_C": tile.columns, "BASE": base, "SPLITS": parts}
    kernels = grouped_lora_kernels
    unit = ("B_rank", "base_column", "out_column", *one)
    return [
        _specimen(f"lora-shrink-{label}", kernels._shrink_kernel, dtype, tile, shrink, ("x_column", "A_column", *one)),
        _specimen(f"lora-expand-{label}", kernels._expand_kernel, dtype, tile, expand, unit),
    ]


def _backward(dtype: str, tile: Any, mixed: bool) -> list[Specimen]:
    outer = {"MIXED": mixed, "BLOCK_C": tile.columns, "BLOCK_N": tile.contracted, "SPLITS": 1}
    label = f"{dtype}-R{tile.rank}" + ("-mixed" if mixed else "")
    # The gradient of A lies along its columns, that of B along its ranks; A, seen as B, too.
    found = [
        _specimen(
            f"lora-outer-{unit}-{label}", grouped_lora_kernels._outer_kernel, dtype, tile, outer, ("y_column", unit)
        )
        for unit in ("out_column", "out_rank")
    ]
    expand = {"MIXED": mixed, "BLOCK_C": tile.columns, "BASE": False, "SPLITS": 1}
    unit = ("B_column", "out_column")
    found.append(_specimen(f"lora-grad-x-{label}", grouped_lora_kernels._expand_kernel, dtype, tile, expand, unit))
    shrink = {"MIXED": mixed, "BLOCK_H": tile.terms}
    unit = ("x_column", "A_rank")
    found.append(_specimen(f"lora-grad-h-{label}", grouped_lora_kernels._shrink_kernel, dtype, tile, shrink, unit))
    return found


def specimens(target: str) -> list[Specimen]:
    gpu, shared = TARGETS[target]
    amd = gpu.backend == "hip"
    device = Device(0 if amd else int(gpu.arch), 132, shared, amd)

    def tile(itemsize: int, N: int, R: int) -> Any:
        return grouped_lora.lora_tile(device, itemsize, N, 8, R)

    found = _forward("bf16", tile(2, 8, 16), False, True, 8, one_row=True)
    found += _forward("bf16", tile(2, 8192, 16), False, True, 1)
    found += _backward("bf16", tile(2, 8192, 16), False)
    found += _forward("fp16", tile(2, 8192, 128), True, False, 1)
    found += _backward("fp16", tile(2, 8192, 128), True)
    found += _forward("fp16", tile(2, 8, 128), False, True, 8)
    found += _forward("fp16", tile(2, 8192, 32), False, False, 1)
    found += _forward("fp32", tile(4, 8192, 16), False, False, 1)
    found += _backward("fp32", tile(4, 8192, 128), False)
    constants = {"MIXED": False, "SPLITS": 1, "GRAD_SPLITS": 1}
    kernel = grouped_lora_kernels._scaling_gradient_kernel
    out = _specimen("lora-scaling", kernel, "fp32", tile(2, 8192, 16), constants, ())
    return [*found, out]
