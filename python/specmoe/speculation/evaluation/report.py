"""Figures of several predictors side by side: a table, JSON, plots.

Letters: L layers, E experts, K experts per token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..counting import membership
from ..traces import RouteTrace
from .caching import belady_scores, cache_hits, closed, lru_scores, recorded_scores
from .metrics import Accuracy, measure, reliability


@dataclass(frozen=True)
class Row:
    """One predictor.

    Args:
        name: of the predictor.
        accuracy: its figures.
        chances: (N, L, E), what it said.
        parameters: trained or counted numbers; None where nobody counted.
        microseconds: of one layer and token; NaN where it was asked in batches.
        training_seconds: None where it was read from a file that does not say.
        closed: slots to how much of the way from LRU to Belady its scores for eviction close; empty without scores.
    """

    name: str
    accuracy: Accuracy
    chances: np.ndarray
    parameters: int | None
    microseconds: float
    training_seconds: float | None
    closed: dict[int, float]


def row_of(
    name: str,
    trace: RouteTrace,
    chances: np.ndarray,
    *,
    heaviest: np.ndarray | None = None,
    keep: np.ndarray | None = None,
    slots: tuple[int, ...] = (),
    parameters: int | None = None,
    seconds: float = math.nan,
    training_seconds: float | None = None,
) -> Row:
    """Return a predictor's row from what it said along a trace."""
    ways: dict[int, float] = {}
    if keep is not None:
        for size in slots:
            lru, belady, own = (
                float(cache_hits(trace, size, s).mean())
                for s in (lru_scores(trace), belady_scores(trace), recorded_scores(keep))
            )
            ways[size] = closed(own, lru, belady)
    return Row(
        name, measure(trace, chances, heaviest, slots), chances, parameters, 1e6 * seconds, training_seconds, ways
    )


def table(rows: Sequence[Row], layer_microseconds: float | None = None) -> str:
    """Return a Markdown table; means of layers 1 to L - 1."""
    slots = sorted({size for row in rows for size in row.accuracy.absent_precision})
    head = ["predictor", "top-1", "heaviest", "recall@K", "recall@2K", "calibration error"]
    head += [f"precision on absent, {s} slots" for s in slots] + [f"way to Belady, {s}" for s in slots]
    head += ["parameters", "trained, s", "µs a layer"] + (["share of a layer"] if layer_microseconds else [])
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        a = row.accuracy
        cells = [row.name, *(_percent(a.mean(v)) for v in (a.top1, a.heaviest, a.recall_k, a.recall_2k))]
        cells += [f"{a.mean(a.calibration):.4f}"]
        cells += [_percent(a.mean(a.absent_precision[s])) if s in a.absent_precision else "" for s in slots]
        cells += [f"{row.closed[s]:.2f}" if s in row.closed else "" for s in slots]
        cells += ["" if row.parameters is None else f"{row.parameters:,}"]
        cells += ["" if row.training_seconds is None else f"{row.training_seconds:.0f}"]
        cells += ["" if math.isnan(row.microseconds) else f"{row.microseconds:.1f}"]
        if layer_microseconds:
            cells += ["" if math.isnan(row.microseconds) else f"{row.microseconds / layer_microseconds:.2%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f} %"


def as_json(rows: Sequence[Row]) -> str:
    """Return all figures, by layer."""

    def plain(row: Row) -> dict[str, Any]:
        a = row.accuracy
        return {
            "name": row.name,
            "parameters": row.parameters,
            "training_seconds": row.training_seconds,
            "microseconds": None if math.isnan(row.microseconds) else row.microseconds,
            "closed": row.closed,
            **{n: getattr(a, n).tolist() for n in ("top1", "recall_k", "recall_2k", "log_loss", "calibration")},
            "heaviest": None if np.isnan(a.heaviest).any() else a.heaviest.tolist(),
            "absent_precision": {s: v.tolist() for s, v in a.absent_precision.items()},
            "absent_recall": {s: v.tolist() for s, v in a.absent_recall.items()},
        }

    return json.dumps([plain(row) for row in rows], indent=1)


def draw(rows: Sequence[Row], trace: RouteTrace, folder: Path) -> list[Path]:
    """Write `recall.png` (recall@K by layer) and `calibration.png`; return their paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    used = membership(trace.experts, trace.num_experts) > 0
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for row in rows:
        axes.plot(100 * row.accuracy.recall_k, label=row.name)
    axes.set(xlabel="layer", ylabel=f"recall@{trace.experts.shape[2]}, %", title="Experts found among the K likeliest")
    axes.legend(fontsize=8)
    paths = [folder / "recall.png", folder / "calibration.png"]
    figure.savefig(paths[0], dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    figure, axes = pyplot.subplots(figsize=(6, 6))
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for row in rows:
        axes.plot(*reliability(row.chances, used), marker=".", label=row.name)
    axes.set(xlabel="probability", ylabel="share that was used", title="Calibration")
    axes.legend(fontsize=8)
    figure.savefig(paths[1], dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return paths
