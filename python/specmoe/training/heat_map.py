"""A table of numbers as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .files import replace_file


def plot_heat_map(table: Mapping[str, Mapping[str, float]], path: Path, title: str, rows: str, columns: str) -> None:
    """Draws a table with each number in its cell, coloured by how far it is above the smallest of its column.

    Args:
        table: rows of columns, all with the same columns.
        path: the PNG to write.
        title: what it is called.
        rows, columns: what the rows and the columns are.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, across = list(table), list(next(iter(table.values())))
    values = [[table[name][column] for column in across] for name in names]
    figure = Figure(figsize=(2 + 1.1 * len(across), 1.6 + 0.7 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = [min(column) for column in zip(*values, strict=True)]
    above = [[value - least for value, least in zip(row, best, strict=True)] for row in values]
    image = axes.imshow(above, cmap="viridis_r", aspect="auto")
    axes.set(xlabel=columns, ylabel=rows, title=title)
    axes.set_xticks(range(len(across)), across, rotation=20, ha="right")
    axes.set_yticks(range(len(names)), names)
    darkest = max(map(max, above))
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            color = "white" if above[y][x] > darkest / 2 else "black"
            weight = "bold" if value == best[x] else "normal"
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", color=color, weight=weight)
    figure.colorbar(image, label="above the best of the column")
    replace_file(path, lambda partial: figure.savefig(partial, dpi=130))
