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


def _panel(axes: Axes, rows: list[Row], title: str, what: str, value: Any, label: Any) -> None:
    rows = [row for row in rows if row.status == "ok" and value(row)]
    axes.set_title(title, fontsize=10)
    axes.set_ylabel(what)
    if rows:
        _bars(axes, rows, value, {label(row): label(row) for row in rows}, label)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])


def _fractions(axes: Axes, rows: list[Row], title: str, label: Any) -> None:
    _panel(axes, rows, title, "fraction of the floor", lambda row: row.of_floor, label)
    axes.set_ylim(0, max([1.0, *(1.12 * row.of_floor for row in rows if row.of_floor)]))


def _microseconds(row: Row) -> float:
    return row.seconds * 1e6


def _with_count(row: Row) -> str:
    return f"{row.case.split('-')[0]}\nT={row.T}"


def _with_group(row: Row) -> str:
    return f"{row.group}\n{row.case.split('-')[0]}"


def draw(data: dict[str, Any], path: Path) -> None:
    """Write six panels."""
    rows = rows_of(data)

    def of(group: str) -> list[Row]:
        return [row for row in rows if row.group == group]

    figure = Figure(figsize=(16, 9.5), layout="constrained")
    panels = figure.subplots(2, 3)
    many = max((row.T for row in of("forward")), default=0)
    for axes, group in zip(panels[0, :2], ("forward", "forward+backward"), strict=True):
        chosen = [row for row in of(group) if row.T == many]
        _fractions(axes, chosen, f"{group}, bfloat16, T = {many}", lambda row: row.case)
    _fractions(panels[0, 2], of("decode"), "decode in a CUDA graph, cold weights", _with_count)
    _panel(
        panels[1, 0],
        of("quantized"),
        "quantized experts in a CUDA graph",
        "times faster than bfloat16",
        lambda row: row.ratio,
        _with_count,
    )
    _panel(
        panels[1, 1],
        of("topk_gating") + of("route"),
        "gating and route in a CUDA graph",
        "µs of one call",
        _microseconds,
        lambda row: f"{row.group}\nT={row.T}",
    )
    _fractions(panels[1, 2], of("permute") + of("unpermute"), f"permute and unpermute, T = {many}", _with_group)
    rates = "not measured"
    if ceilings := data.get("ceilings"):
        rates = f"matmul {ceilings['matmul'] / 1e12:.3g} TFLOP/s, copy {ceilings['copy'] / 1e9:.4g} GB/s"
    small = "SMALL SIZES, only to try the harness; " if data.get("small") else ""
    figure.suptitle(f"{small}{data.get('device', '')}, {data.get('date', '')[:10]}; ceilings: {rates}", fontsize=11)
    figure.savefig(path, dpi=110)
