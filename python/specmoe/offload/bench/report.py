"""What was measured, as numbers for a file, and as a table and a picture for people."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .arms import LRU_ARM, ArmResult
from .summary import speedups
from .sweep import EMULATED_ARMS, OURS

RESAMPLES = 2000


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Return the median of paired values, and the ends of its 95 % interval by the bootstrap."""
    chance = random.Random(seed)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return statistics.median(values), medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def measured_rows(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Return one row for each arm that was measured on the real disk."""
    rows = []
    for result in results:
        stats = result.total
        ratios = None if result.arm.once else speedups(results, result.arm.name, LRU_ARM.name)
        ordered = sorted(result.latencies)

        def quantile(q: float, ordered: list[float] = ordered) -> float | None:
            return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None

        rows.append(
            {
                "arm": result.arm.name,
                "tokens_per_second": result.tokens_per_second,
                "speedup_over_lru": None if not ratios else interval(ratios),
                "rounds": len(result.seconds),
                "tokens": sum(result.tokens),
                "stall_seconds_per_token": result.per_token(stats.stall_seconds),
                "seconds_p50_p95_p99": [quantile(q) for q in (0.5, 0.95, 0.99)],
                "predict_seconds_per_token": result.per_token(stats.predict_seconds),
                "hit_rate": stats.hit_rate,
                "recall": stats.recall,
                "precision": stats.precision,
                "bytes_per_token": {
                    kind: result.per_token(getattr(stats, f"{kind}_bytes"))
                    for kind in ("demand", "useful", "late", "wasted")
                },
                "peak_bytes": stats.peak_bytes,
                "page_cache_bytes": result.cached_bytes,
                "outputs_equal": result.equal,
            }
        )
    return rows


def machine() -> dict[str, Any]:
    """Describe where something was measured."""
    import torch

    model = platform.processor() or platform.machine()
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    except OSError:
        pass
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a report's numbers, with the machine they are of."""
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n")


def sweep_tables(rows: Sequence[dict[str, Any]], plain: bool) -> list[tuple[str, Table]]:
    """Return a title and a table for each cache size: speedup over the baseline by load/compute."""
    tables = []
    for slots in sorted({row["slots"] for row in rows}):
        part = [row for row in rows if row["slots"] == slots]
        ratios = sorted({row["ratio"] for row in part})
        table = Table(show_edge=not plain)
        if plain:
            table.box = None
        table.add_column("arm", no_wrap=True)
        for ratio in ratios:
            table.add_column(f"{ratio:g}", justify="right")
        table.add_column("hit rate", justify="right")
        for arm in EMULATED_ARMS:
            cells = {row["ratio"]: row for row in part if row["arm"] == arm}
            rate = cells[ratios[-1]]["hit_rate"]
            speeds = [f"{cells[ratio]['speedup']:.3f}" for ratio in ratios]
            table.add_row(arm, *speeds, "-" if rate is None else f"{rate:.1%}")
            if arm == OURS:
                gains = [cells[ratio]["oracle_gain"] for ratio in ratios]
                table.add_row("  of the oracle's gain", *("-" if g is None else f"{g:.2f}" for g in gains), "")
        tables.append((f"{slots} slots a layer: times as fast as LRU on demand, by load/compute", table))
    return tables


def plot_sweep(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the speedups over load/compute, a panel for each cache size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted({row["slots"] for row in rows})
    figure, axes = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 4.2), sharey=True, squeeze=False)
    shown = [arm for arm in EMULATED_ARMS if arm not in ("all resident", "no cache")]
    for axis, slots in zip(axes[0], sizes, strict=True):
        for arm in shown:
            part = sorted((r["ratio"], r["speedup"]) for r in rows if r["slots"] == slots and r["arm"] == arm)
            style = {"linewidth": 2.4} if arm == OURS else {"linewidth": 1.2, "alpha": 0.85}
            axis.plot(*zip(*part, strict=True), marker="o", markersize=3, label=arm, **style)
        axis.set_xscale("log")
        axis.set_title(f"{slots} slots a layer", fontsize="medium")
        axis.set_xlabel("time to load an expert / a layer's compute")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("times as fast as LRU on demand")
    axes[0][-1].legend(fontsize="x-small", frameon=False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
