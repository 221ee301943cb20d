"""One figure of a run: how much of its floor each arm reaches, and what the short ops take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpu.results import Row, rows_of

# Told apart by those who see no red or green as well; ours are the warm ones.
COLOURS = {
    "triton": "#d55e00",
    "cuda": "#e69f00",
    "cpu": "#d55e00",
    "reference": "#cccccc",
    "torch grouped_mm": "#000000",
    "ScatterMoE": "#0072b2",
    "Liger": "#009e73",
    "SonicMoE": "#cc79a7",
    "vLLM": "#56b4e9",
}
HATCHES = {"nf4": "//", "int8": ".."}


def _bars(axes: Axes, rows: list[Row], value: Any, labels: dict[Any, str], key: Any) -> None:
    """Draw a group of bars for each key, a bar for each arm."""
    names = list(dict.fromkeys(row.arm for row in rows))
    width = 0.8 / max(1, len(names))
    for i, arm in enumerate(names):
        mine = {key(row): value(row) for row in rows if row.arm == arm}
        places = [x + (i - (len(names) - 1) / 2) * width for x, label in enumerate(labels) if label in mine]
        heights = [mine[label] for label in labels if label in mine]
        backend, _, kind = arm.partition(" ") if arm not in COLOURS else (arm, "", "")
        drawn = axes.bar(
            places, heights, width * 0.92, label=arm, color=COLOURS.get(backend, "#999999"), hatch=HATCHES.get(kind)
        )
        axes.bar_label(drawn, fmt="{:.2g}", fontsize=6, padding=1)
    axes.set_xticks(range(len(labels)), list(labels.values()), fontsize=8)
    axes.margins(y=0.12)
    axes.grid(axis="y", linewidth=0.4, alpha=0.6)
    axes.set_axisbelow(True)
    if names:
        axes.legend(
            fontsize=7, frameon=False, ncols=min(4, len(names)), loc="upper center", bbox_to_anchor=(0.5, -0.12)
        )


def _fractions(axes: Axes, rows: list[Row], title: str, by_count: bool) -> None:
    rows = [row for row in rows if row.status == "ok" and row.of_floor]
    key = (lambda row: (row.case, row.T)) if by_count else (lambda row: row.case)
    labels = {key(row): f"{row.case}\nT={row.T}" if by_count else row.case for row in rows}
    _bars(axes, rows, lambda row: row.of_floor, labels, key)
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("fraction of the floor")
    if rows:
        axes.set_ylim(0, max(1.0, *(row.of_floor * 1.12 for row in rows)))
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def _microseconds(axes: Axes, rows: list[Row]) -> None:
    rows = [row for row in rows if row.status == "ok" and row.seconds]
    labels = {(row.group, row.T): f"{row.group}\nT={row.T}" for row in rows}
    _bars(axes, rows, lambda row: row.seconds * 1e6, labels, lambda row: (row.group, row.T))
    axes.set_title("gating and route in a CUDA graph", fontsize=10)
    axes.set_ylabel("µs of one call")
    if not rows:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def _faster(axes: Axes, rows: list[Row]) -> None:
    rows = [row for row in rows if row.status == "ok" and row.ratio]
    labels = {(row.case, row.T): f"{row.case}\nT={row.T}" for row in rows}
    _bars(axes, rows, lambda row: row.ratio, labels, lambda row: (row.case, row.T))
    axes.set_title("quantized experts in a CUDA graph", fontsize=10)
    axes.set_ylabel("times faster than bfloat16")
    if not rows:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)


def draw(data: dict[str, Any], path: Path) -> None:
    """Write six panels."""
    rows = rows_of(data)

    def of(group: str) -> list[Row]:
        return [row for row in rows if row.group == group]

    figure = Figure(figsize=(16, 9.5), layout="constrained")
    panels = figure.subplots(2, 3)
    many = max((row.T for row in of("forward")), default=0)
    for axes, group in zip(panels[0, :2], ("forward", "forward+backward"), strict=True):
        _fractions(axes, [row for row in of(group) if row.T == many], f"{group}, bfloat16, T = {many}", False)
    _fractions(panels[0, 2], of("decode"), "decode in a CUDA graph, cold weights", True)
    _faster(panels[1, 0], of("quantized"))
    _microseconds(panels[1, 1], of("topk_gating") + of("route"))
    _fractions(
        panels[1, 2], of("permute") + of("unpermute") + of("grouped_lora"), "permute, unpermute, grouped_lora", True
    )
    ceilings = data.get("ceilings")
    rates = (
        f"matmul {ceilings['matmul'] / 1e12:.0f} TFLOP/s, copy {ceilings['copy'] / 1e9:.0f} GB/s" if ceilings else ""
    )
    small = "SMALL SIZES, only to try the harness; " if data.get("small") else ""
    figure.suptitle(f"{small}{data.get('device', '')}, {data.get('date', '')[:10]}; ceilings: {rates}", fontsize=11)
    figure.savefig(path, dpi=110)
