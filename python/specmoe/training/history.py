"""The record of a run: one JSON object a line, and a plot of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .files import replace_file

HISTORY_FILE = "history.jsonl"
PLOT_FILE = "loss.png"


class History:
    """Lines of `history.jsonl`, kept in memory and on disk."""

    def __init__(self, directory: Path, last_step: int) -> None:
        """Opens the record and drops what lies after a step.

        Args:
            directory: where the file is.
            last_step: lines of later steps are dropped: a resumed run writes them again.
        """
        self.path = directory / HISTORY_FILE
        self.lines: list[dict[str, Any]] = []
        if self.path.is_file() and last_step > 0:
            kept = (_parse(line) for line in self.path.read_text().splitlines())
            self.lines = [line for line in kept if line is not None and line["step"] <= last_step]
        content = "".join(json.dumps(line) + "\n" for line in self.lines)
        replace_file(self.path, lambda partial: partial.write_text(content))

    def add(self, **values: Any) -> None:
        """Appends a line; `step` is one of the values."""
        self.lines.append(values)
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps and values of the lines that have a value of this name."""
        found = [(line["step"], line[name]) for line in self.lines if name in line]
        return [step for step, _ in found], [value for _, value in found]


def plot_losses(history: History, path: Path, title: str) -> None:
    """Draws training and validation cross-entropy over the steps.

    Args:
        history: the record.
        path: the PNG to write.
        title: the plot's title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*history.series("cross_entropy"), label="training, mean since the last point", linewidth=1)
    axes.plot(*history.series("validation_loss"), label="validation, whole split", marker="o", markersize=3)
    axes.set(xlabel="step", ylabel="cross-entropy, nats per token", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    replace_file(path, lambda partial: figure.savefig(partial, dpi=130))


def _parse(line: str) -> dict[str, Any] | None:
    # A process killed while it appends leaves half a line, always the last one.
    try:
        return json.loads(line)
    except ValueError:
        return None
