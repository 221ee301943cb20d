"""A table of shares as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ...training.files import replace_file


def plot_shares(table: Mapping[str, Mapping[str, float]], path: Path, title: str, columns: str) -> None:
    """Draws shares in percent, from red to green; what a row has not stays empty.

    Args:
        table: for each specialist its groups and their shares, from 0 to 1.
        path: the PNG to write.
        title: what it is called.
        columns: what the groups are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = sorted({group for groups in table.values() for group in groups})
    values = [[100 * groups.get(group, math.nan) for group in across] for groups in table.values()]
    figure = Figure(figsize=(2.5 + 0.85 * len(across), 2 + 0.6 * len(table)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="RdYlGn", vmin=0, vmax=100, aspect="auto")
    axes.set(xlabel=columns, title=title)
    axes.set_xticks(range(len(across)), across, rotation=35, ha="right")
    axes.set_yticks(range(len(table)), list(table))
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if not math.isnan(value):
                # The ends of the scale are dark.
                color = "white" if value < 12 or value > 88 else "black"
                axes.text(x, y, f"{value:.1f}", ha="center", va="center", color=color)
    figure.colorbar(image, label="%")
    replace_file(path, lambda partial: figure.savefig(partial, dpi=130))
