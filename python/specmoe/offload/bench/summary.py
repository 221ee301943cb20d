"""What the measured numbers say: one table, one sentence."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.table import Table

from ..budget import format_bytes
from .arms import LRU_ARM, ORACLE, OURS, ArmResult

# Rounds closer than this are called equal.
NOTICEABLE = 0.01


def results_table(results: Sequence[ArmResult], plain: bool = False) -> Table:
    """Return the table of all arms.

    Args:
        results: one for each arm.
        plain: without frames, for a file or a pipe.
    """
    table = Table(show_edge=not plain)
    if plain:
        table.box = None
    table.add_column("arm", no_wrap=True)
    for name in (
        "tokens/s",
        "stall\nms/token",
        "hit\nrate",
        "recall",
        "read\n/token",
        "wasted\n/token",
        "outputs\nequal",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        stats = result.total
        loaded = stats.demand_bytes + stats.useful_bytes + stats.wasted_bytes
        recall = stats.recall if result.arm.guess is not None else None
        cells = [
            f"{1e3 * result.per_token(stats.stall_seconds):.2f}",
            f"{stats.hit_rate:.1%}",
            "-" if recall is None else f"{recall:.1%}",
            format_bytes(result.per_token(loaded)),
            format_bytes(result.per_token(stats.wasted_bytes)) if result.arm.guess else "-",
        ]
        if result.arm.resident:
            cells = ["-"] * len(cells)
        equal = "yes" if result.equal else "NO"
        table.add_row(result.arm.name, f"{result.tokens_per_second:.2f}", *cells, equal)
    return table


def speedups(results: Sequence[ArmResult], name: str, base: str) -> list[float] | None:
    """Return, for each round, how many times as fast one arm was as another; None when either did not run."""
    found = {result.arm.name: result for result in results}
    if name not in found or base not in found:
        return None
    return [b / a for a, b in zip(found[name].seconds, found[base].seconds, strict=True)]


def interpret(results: Sequence[ArmResult]) -> str:
    """Return one sentence on what prediction was worth against LRU, from the measured numbers alone."""
    ratios = speedups(results, OURS.name, LRU_ARM.name)
    if ratios is None:
        return ""
    found = {result.arm.name: result for result in results}
    predicted, lru = found[OURS.name], found[LRU_ARM.name]
    gain = statistics.median(ratios) - 1
    spread = f"({len(ratios)} rounds, {min(ratios) - 1:+.1%} to {max(ratios) - 1:+.1%})"
    unclear = abs(gain) < NOTICEABLE or min(ratios) < 1 < max(ratios)
    if unclear:
        verdict = f"Prefetch and plain LRU are not told apart: {gain:+.1%} tokens/s {spread}"
    else:
        verdict = f"Prefetch {'won' if gain > 0 else 'lost'} {abs(gain):.1%} tokens/s against LRU {spread}"
    stats, base = predicted.total, lru.total
    stall, base_stall = predicted.per_token(stats.stall_seconds), lru.per_token(base.stall_seconds)
    # Compute for each layer call is what is left of the baseline's time without its stall.
    compute = (sum(lru.seconds) - base.stall_seconds) / max(1, sum(lru.tokens))
    reasons = [f"the stall went from {1e3 * base_stall:.2f} to {1e3 * stall:.2f} ms per token"]
    overhead = predicted.per_token(stats.predict_seconds)
    reasons.append(f"predicting took {1e3 * overhead:.2f} ms per token")
    if stats.speculative_loads:
        precision = "" if stats.precision is None else f", {stats.precision:.0%} of them used"
        reasons.append(
            f"{stats.speculative_loads / max(1, sum(predicted.tokens)):.2f} guesses were loaded per token{precision}"
        )
    else:
        reasons.append("the cost gate found no guess worth loading")
    sentence = f"{verdict}: " + ", ".join(reasons)
    best = speedups(results, ORACLE.name, LRU_ARM.name)
    if best is not None:
        gained, room = statistics.median(best) - 1, base_stall / compute if compute else 0.0
        sentence += (
            f"; knowing the next layer's experts exactly (oracle) gave {gained:+.1%}, and LRU's own stall leaves room "
            f"for {room:+.1%}"
        )
    return sentence + "."
