"""The specializations of the gating kernels to compile."""

from __future__ import annotations

from typing import Any

import triton
from compiled import Specimen

from moe_kernels.backends.triton import topk_gating
from moe_kernels.backends.triton import topk_gating_kernels as kernels

FLOATS = ("weights", "part_probability", "part_sums", "counts", "mean_probability", "z", "entropy", "bias")
GRADS = ("grad_weights", "grad_mean_probability", "grad_z", "grad_entropy")
INTEGERS = ("indices", "part_counts", "counted")


def _specimen(name: str, kernel: Any, dtype: str, constants: dict[str, Any], E: int) -> Specimen:
    types = {n: "*fp32" for n in FLOATS + GRADS} | {n: "*i32" for n in INTEGERS}
    types |= {"logits": f"*{dtype}", "noise": f"*{dtype}", "grad": f"*{dtype}", "mask": "*u8", "scale": "fp32"}
    types = {n: types.get(n, "i32") for n in kernel.arg_names if n not in constants}
    aligned = {n for n, kind in types.items() if kind[0] == "*"} | ({"stride"} & types.keys() if E % 16 == 0 else set())
    return Specimen(name, kernel, types, constants, frozenset(aligned))


def _forward(name: str, dtype: str, E: int, k: int, groups: int = 1, top: int = 1, **options: Any) -> Specimen:
    block = topk_gating.tile(E, groups)
    constants = {
        "E": E,
        "K_PAD": triton.next_power_of_2(k),
        "GROUPS": groups,
        "TOP_GROUPS": top,
        "GROUPS_PAD": block.groups,
        "SIZE_PAD": block.size,
        "SIGMOID": False,
        "RENORMALIZE": False,
        "BLOCK_T": block.tokens,
        **options,
    }
    return _specimen(f"gating-{name}-{dtype}-E{E}", kernels._gating_kernel, dtype, constants, E)


def _backward(dtype: str, E: int, **options: Any) -> Specimen:
    block = topk_gating.tile(E, 1)
    constants = {"E": E, "E_PAD": block.size, "BLOCK_T": block.tokens, **options}
    return _specimen(f"gating-backward-{dtype}-E{E}", kernels._gating_backward_kernel, dtype, constants, E)


def specimens(target: str) -> list[Specimen]:
    plain = {"bias": None, "noise": None, "mask": None}
    adding = {"ROWS": topk_gating.ROWS, "BLOCK_E": topk_gating.EXPERTS}
    return [
        _forward("softmax", "bf16", 128, 8, **plain, RENORMALIZE=True),
        _forward("softmax", "fp32", 8, 2, **plain),
        _forward("masked", "bf16", 60, 4, bias=None),
        _forward("groups", "bf16", 256, 8, 8, 4, noise=None, SIGMOID=True, RENORMALIZE=True),
        _forward("groups", "fp32", 160, 6, 8, 3, bias=None, noise=None, mask=None),
        _forward("all", "fp32", 1024, 1024, SIGMOID=True),
        _specimen("gating-statistics", kernels._statistics_kernel, "fp32", adding, 128),
        _backward("bf16", 128, noise=None, mask=None, counted=None, SIGMOID=False, RENORMALIZE=True),
        _backward("fp32", 1024, SIGMOID=True, RENORMALIZE=True),
        _backward("bf16", 60, SIGMOID=False, RENORMALIZE=False),
    ]
