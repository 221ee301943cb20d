"""The specializations of the kernels that move rows to compile."""

from __future__ import annotations

from typing import Any

from compiled import Specimen

from moe_kernels.backends.triton import permute, unpermute
from moe_kernels.backends.triton.rows import tile

POINTERS = ("x", "rows", "grad", "out", "grad_rows", "offsets", "slot_row", "owned", "weights", "grad_weights")


def _specimen(name: str, kernel: Any, dtype: str, constants: dict[str, Any], H: int, out: str = "") -> Specimen:
    rows = f"*{dtype}"
    types = {"x": rows, "rows": rows, "grad": rows, "out": f"*{out or dtype}", "grad_rows": rows}
    types |= {"offsets": "*i32", "slot_row": "*i32", "owned": "*i32", "weights": "*fp32", "grad_weights": "*fp32"}
    types = {n: types.get(n, "i32") for n in kernel.arg_names if n not in constants}
    wide = {"H", *(n for n in types if n.endswith("stride"))} if H % 16 == 0 else set()
    aligned = types.keys() & {*POINTERS, *wide}
    return Specimen(f"{name}-{dtype}-H{H}", kernel, types, constants, frozenset(aligned))


def specimens(target: str) -> list[Specimen]:
    found = []
    for dtype, H in (("bf16", 2048), ("fp32", 4096), ("bf16", 33)):
        block_T, block_H = tile(H)
        blocks = {"BLOCK_T": block_T, "BLOCK_H": block_H}
        found.append(_specimen("permute", permute._permute_kernel, dtype, blocks, H))
        found.append(_specimen("unpermute", unpermute._unpermute_kernel, dtype, {**blocks, "K": 8}, H))
        back = unpermute._unpermute_backward_kernel
        found.append(
            _specimen("unpermute-backward", back, dtype, {"BLOCK_H": min(block_H, unpermute.BACKWARD_COLUMNS)}, H)
        )
    plain = {"weights": None, **blocks, "K": 2}
    found.append(_specimen("unpermute-plain", unpermute._unpermute_kernel, "bf16", plain, 33))
    found.append(_specimen("combine", unpermute._unpermute_kernel, "fp32", {**blocks, "K": 8}, 4096, "bf16"))
    return found
