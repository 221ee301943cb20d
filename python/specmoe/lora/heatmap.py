"""The table of expert by domain, as text and as a picture."""

from __future__ import annotations

from pathlib import Path

from ..training.files import replace_file
from .evaluate import Evaluation


def table(evaluation: Evaluation) -> str:
    """Returns the losses as a Markdown table, systems down, domains across; the best expert of a domain is marked."""
    domains = list(next(iter(evaluation.losses.values())))
    best = {d: min(evaluation.experts, key=lambda name: evaluation.losses[name][d], default=None) for d in domains}
    lines = [["", *domains], ["---", *(["--:"] * len(domains))]]
    for system, losses in evaluation.losses.items():
        marks = ["*" if best[domain] == system else "" for domain in losses]
        lines.append([system, *(f"{losses[d]:.3f}{mark}" for d, mark in zip(losses, marks, strict=True))])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "| " + " | ".join(f"{cell:>{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def heat_map(evaluation: Evaluation, path: Path) -> None:
    """Draws how far each expert is above the best expert of a domain, with its loss written in each cell.

    Args:
        evaluation: the losses.
        path: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    experts = evaluation.experts
    losses = [[evaluation.losses[expert][domain] for domain in experts] for expert in experts]
    best = [min(column) for column in zip(*losses, strict=True)]
    above = [[loss - least for loss, least in zip(row, best, strict=True)] for row in losses]
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(above, cmap="viridis_r")
    for i, row in enumerate(losses):
        for j, loss in enumerate(row):
            axes.text(j, i, f"{loss:.2f}", ha="center", va="center", color="white" if above[i][j] > 1 else "black")
    axes.set_xticks(range(len(experts)), experts)
    axes.set_yticks(range(len(experts)), experts)
    axes.set(xlabel="domain of the held-out records", ylabel="expert", title="held-out loss, nats per token")
    figure.colorbar(image, label="above the best expert of the domain, nats")
    replace_file(path, lambda partial: figure.savefig(partial, dpi=130))
