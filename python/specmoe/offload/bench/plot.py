"""A picture of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .arms import ArmResult

COLOURS = {"demand": "#4c72b0", "useful": "#55a868", "wasted": "#c44e52", "plain": "#4c72b0", "stall": "#dd8452"}
MIB = 1024 * 1024


def plot_results(results: Sequence[ArmResult], title: str, note: str, path: str | Path) -> None:
    """Write a PNG with speed, stall and bytes of every arm.

    Args:
        results: one for each arm.
        title: what was run.
        note: a sentence below the bars.
        path: the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [result.arm.name for result in results]
    rows = range(len(names))
    figure, (speed, stall, read) = plt.subplots(1, 3, figsize=(13, 1.9 + 0.42 * len(names)), sharey=True)
    values = [result.tokens_per_second for result in results]
    speed.barh(rows, values, color=COLOURS["plain"])
    for row, result, value in zip(rows, results, values, strict=True):
        rates = [n / s for n, s in zip(result.tokens, result.seconds, strict=True)]
        speed.plot([min(rates), max(rates)], [row, row], "|-", color="black", markersize=8, linewidth=1)
        speed.annotate(f"{value:.1f}", (max(rates), row), (6, 0), textcoords="offset points", va="center")
    speed.set_xlabel("tokens per second (median; line: all rounds)")
    speed.set_yticks(list(rows), names)
    speed.invert_yaxis()

    values = [1e3 * result.per_token(result.total.stall_seconds) for result in results]
    stall.bar_label(stall.barh(rows, values, color=COLOURS["stall"]), labels=[f"{v:.2f}" for v in values], padding=3)
    stall.set_xlabel("waiting for experts, ms per token")

    left = [0.0] * len(names)
    for kind in ("demand", "useful", "wasted"):
        values = [result.per_token(getattr(result.total, f"{kind}_bytes")) / MIB for result in results]
        label = {"demand": "on demand", "useful": "guessed, used", "wasted": "guessed, wasted"}[kind]
        read.barh(rows, values, left=left, color=COLOURS[kind], label=label)
        left = [a + b for a, b in zip(left, values, strict=True)]
    read.set_xlabel("read from disk, MiB per token")
    # Nothing is read by the first arm, so that its row has room.
    read.legend(loc="upper right", fontsize="x-small", ncols=3, bbox_to_anchor=(1.0, 1.06), frameon=False)
    for axis in (speed, stall, read):
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    figure.text(0.01, 0.01, note, ha="left", va="bottom", fontsize="small", wrap=True)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
