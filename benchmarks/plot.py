"""Time against T of every arm, with the floor: `python benchmarks/plot.py RESULTS.json FIGURE.png`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from report import Record, load  # noqa: E402

# Ours stands out; the peers' colours are told apart by those who see no red or green as well.
STYLES = {
    "ours": ("#d55e00", "o"),
    "eager": ("#999999", "v"),
    "grouped_mm": ("#000000", "^"),
    "vLLM": ("#0072b2", "s"),
    "SGLang": ("#009e73", "D"),
    "SGLang int8": ("#56b4e9", "d"),
}


def draw(records: list[Record], path: Path, op: str = "fused_experts") -> None:
    """Write one panel for each dtype and shape of `op`; nothing where there are no records of it."""
    from matplotlib.figure import Figure

    chosen = [record for record in records if record.op == op]
    if not chosen:
        return
    shapes = sorted({(record.dtype, record.shape) for record in chosen})
    cpu, threads, when = chosen[-1].cpu, chosen[-1].threads, chosen[-1].date
    figure = Figure(figsize=(5.2 * len(shapes) + 0.6, 5.4), layout="constrained")
    panels = figure.subplots(1, len(shapes), squeeze=False)[0]
    for panel, (dtype, shape) in zip(panels, shapes, strict=True):
        group = sorted((r for r in chosen if (r.dtype, r.shape) == (dtype, shape)), key=lambda r: r.T)
        for name in dict.fromkeys(name for record in group for name in record.seconds):
            points = [(r.T, r.seconds[name] * 1e3) for r in group if name in r.seconds]
            colour, marker = STYLES.get(name, (None, "x"))
            width = 2.4 if name == "ours" else 1.2
            panel.plot(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=5, linewidth=width, label=name
            )
        floor = [r.floor * 1e3 for r in group]
        panel.plot([r.T for r in group], floor, color="#d55e00", linestyle="--", linewidth=1.2, label="floor")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks([r.T for r in group], [str(r.T) for r in group])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("tokens T")
        sizes = ", ".join(f"{letter}={size}" for letter, size in group[0].sizes.items())
        panel.set_title(f"{shape}, {dtype}\n{sizes}", fontsize=10)
        panel.grid(which="major", linewidth=0.4, alpha=0.6)
    panels[0].set_ylabel("median time of one call, ms")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=4 * len(shapes), frameon=False
    )
    figure.suptitle(f"{op}, cold weights: {cpu}, {threads} thread{'s' if threads > 1 else ''}, {when}", fontsize=11)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    draw(load(Path(sys.argv[1])), Path(sys.argv[2]))
