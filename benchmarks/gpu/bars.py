"""What was set as the goal for a GPU of the H200's kind, and what of it a run has reached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from gpu.results import Row

NARROW, WIDE = ("OLMoE", "Qwen3-30B-A3B"), ("Mixtral-8x7B", "DeepSeek-V3")
MANY = 32768


class Bar(NamedTuple):
    """One goal of one case.

    Attributes:
        what: the goal's words.
        case: the shape and the number of tokens.
        wanted: the bound.
        got: what was measured; None: not yet.
        by: the arm that it was measured on, the best of ours.
    """

    what: str
    case: str
    wanted: str
    got: float | None
    met: bool | None
    by: str = ""


def _ok(rows: list[Row], group: str, case: str, T: int) -> list[Row]:
    return [r for r in rows if (r.group, r.case, r.T, r.status) == (group, case, T, "ok")]


def _best(rows: list[Row], ours: set[str]) -> Row | None:
    timed = [r for r in rows if r.arm.split()[0] in ours and r.seconds]
    return min(timed, key=lambda r: r.seconds, default=None)


def bars(rows: list[Row], peers: set[str]) -> list[Bar]:
    """Return every goal, with the figure of the run where it has one."""
    ours = {r.arm.split()[0] for r in rows if r.arm not in peers}
    return [*_fractions(rows, ours), *_against_peers(rows, ours), *_absolute(rows, ours)]


def _fraction(rows: list[Row], ours: set[str], group: str, case: str, T: int, wanted: float, of: str) -> Bar:
    best = _best(_ok(rows, group, case, T), ours)
    got = best.of_floor if best else None
    met = None if got is None else got >= wanted
    return Bar(f"{group}, of {of}", f"{case}, T={T}", f"≥ {wanted:.2f}", got, met, best.arm if best else "")


def _fractions(rows: list[Row], ours: set[str]) -> Iterator[Bar]:
    for group, low, high in (("forward", 0.65, 0.75), ("forward+backward", 0.55, 0.65)):
        for case in NARROW + WIDE:
            yield _fraction(rows, ours, group, case, MANY, low if case in NARROW else high, "the matmul ceiling")
    for case in ("Qwen3-30B-A3B", "Mixtral-8x7B"):
        for T, wanted in ((1, 0.60), (8, 0.75), (64, 0.80)):
            yield _fraction(rows, ours, "decode", case, T, wanted, "the copy ceiling")
    for case in ("Qwen3-30B-A3B", "DeepSeek-V3"):
        yield _fraction(rows, ours, "permute", case, MANY, 0.80, "the copy ceiling")


def _against_peers(rows: list[Row], ours: set[str]) -> Iterator[Bar]:
    for peer, narrow, wide in (
        ("ScatterMoE", 1.3, 1.3),
        ("Liger", 1.3, 1.3),
        ("torch grouped_mm", 1.3, 1.05),
        ("SonicMoE", 1.0, 1.0),
    ):
        for group in ("forward", "forward+backward"):
            for case in NARROW + WIDE:
                found = _ok(rows, group, case, MANY)
                best = _best(found, ours)
                theirs = next((r.seconds for r in found if r.arm == peer), None)
                wanted = narrow if case in NARROW else wide
                got = theirs / best.seconds if theirs and best else None
                met = None if got is None else got >= wanted
                arm = best.arm if best else ""
                yield Bar(f"{group}, faster than {peer}", f"{case}, T={MANY}", f"≥ {wanted:.2f}x", got, met, arm)


def _absolute(rows: list[Row], ours: set[str]) -> Iterator[Bar]:
    for group, wanted in (("topk_gating", 12.0), ("route", 15.0)):
        for T in (1, 64, 4096):
            best = _best(_ok(rows, group, "Qwen3-30B-A3B", T), ours)
            got = best.seconds * 1e6 if best else None
            met = None if got is None else got <= wanted
            yield Bar(f"{group} in a graph, µs", f"T={T}", f"≤ {wanted:.0f}", got, met, best.arm if best else "")
    for case in ("OLMoE", "Mixtral-8x7B"):
        kept = [r for r in _ok(rows, "memory", case, 4096) if r.ratio is not None]
        least = min(kept, key=lambda r: r.ratio or 0.0, default=None)
        got = least.ratio if least else None
        met = None if got is None else got <= 1.05
        what = "activation memory over x, pre-activation and plan"
        yield Bar(what, f"{case}, T=4096", "≤ 1.05", got, met, least.arm if least else "")
    for case in ("Qwen3-30B-A3B", "Mixtral-8x7B"):
        for T in (1, 4, 16):
            fast = [r for r in _ok(rows, "quantized", case, T) if r.arm.endswith("nf4") and r.ratio]
            most = max(fast, key=lambda r: r.ratio or 0.0, default=None)
            got = most.ratio if most else None
            met = None if got is None else got >= 2.5
            yield Bar("NF4, faster than bfloat16", f"{case}, T={T}", "≥ 2.50x", got, met, most.arm if most else "")
