"""The specializations of the route kernels to compile."""

from __future__ import annotations

from typing import Any

from compiled import Specimen

from moe_kernels.backends.triton import route

PLAN = {"offsets": "*i32", "row_token": "*i32", "slot_row": "*i32"}
ALIGNED = frozenset({"indices", "counts", *PLAN})


def _specimen(name: str, kernel: Any, extra: dict[str, str], constants: dict[str, Any], warps: int = 4) -> Specimen:
    types = PLAN | {"N": "i32", "E": "i32", "K": "i32", "each": "i32", "counts": "*i32", "programs": "i32"} | extra
    types = {n: types[n] for n in kernel.arg_names if n not in constants}
    return Specimen(name, kernel, types, constants, ALIGNED & types.keys(), {"num_warps": warps})


def specimens(target: str) -> list[Specimen]:
    found = []
    for kind in ("i32", "i64"):
        indices = {"indices": f"*{kind}"}
        pairs = {"COMPARED": route.COMPARED, "WITH": route.WITH}
        found.append(_specimen(f"route-compare-{kind}", route._compare_kernel, indices, pairs, route.COMPARE_WARPS))
    for E in (8, 128, 1024):
        counting = {"RANKED": route.RANKED, "BINS": route.bins(E)}
        ranking = {**counting, "STEP": route.STEP, "COUNTS_READ": route.counts_read(E)}
        found.append(_specimen(f"route-count-E{E}", route._count_kernel, {"indices": "*i32"}, counting))
        rank = _specimen(f"route-rank-E{E}", route._rank_kernel, {"indices": "*i32"}, ranking, route.RANK_WARPS)
        found.append(rank)
    return found
