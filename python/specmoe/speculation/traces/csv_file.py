"""Traces as a table: one row for each expert of each token in each layer.

Columns, in any order: `turn` (the sequence), `phase` (`prefill` before `decode`), `step` (the token within it),
`layer`, `slot` (0 is the largest weight), `expert`, `weight`. Other columns are ignored. Layers are numbered anew from
0, so that a model whose first layers have no experts loses nothing but their numbers. A slot without a row (a token
that was dropped) is "none".
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from .trace import RouteTrace

COLUMNS = ("turn", "phase", "step", "layer", "slot", "expert", "weight")
PHASES = {"prefill": 0, "decode": 1}


def load_csv(path: Path) -> RouteTrace:
    """Read a table of routes.

    Raises:
        ValueError: a column is missing, a value is no number, a layer of a token is missing or a slot is there twice.
    """
    table = _columns(path)
    # A token is a turn, a phase and a step; unique() sorts, which is the order of the trace.
    tokens, token_of = np.unique(table[:, :3], axis=0, return_inverse=True)
    layers, layer_of = np.unique(table[:, 3], return_inverse=True)
    slot_of, expert = table[:, 4].astype(np.int64), table[:, 5].astype(np.int64)
    num_experts = int(expert.max()) + 1
    shape = (len(tokens), len(layers), int(slot_of.max()) + 1)
    if slot_of.min() < 0 or expert.min() < 0:
        raise ValueError(f"trace: {path}: expected slots and experts from 0, got a negative one")
    cell = np.ravel_multi_index((token_of.ravel(), layer_of.ravel(), slot_of), shape)
    kinds, counts = np.unique(cell, return_counts=True)
    if counts.max() > 1:
        token, layer, slot = np.unravel_index(kinds[counts.argmax()], shape)
        raise ValueError(f"trace: {path}: {_name(tokens[token])}, layer {layers[layer]:g}, slot {slot} is there twice")
    experts = np.full(shape, num_experts, dtype=np.min_scalar_type(num_experts))
    weights = np.zeros(shape, dtype=np.float32)
    experts.reshape(-1)[cell] = expert
    weights.reshape(-1)[cell] = table[:, 6]
    empty = np.argwhere((experts == num_experts).all(2))
    if len(empty):
        raise ValueError(
            f"trace: {path}: expected every layer of every token, got none of layer {layers[empty[0, 1]]:g} at "
            f"{_name(tokens[empty[0, 0]])}"
        )
    turns = np.flatnonzero(np.diff(tokens[:, 0])) + 1
    starts = np.concatenate([[0], turns, [len(tokens)]]).astype(np.int64)
    return RouteTrace(experts, starts, num_experts, weights=weights)


def _name(token: np.ndarray) -> str:
    phase = next(name for name, number in PHASES.items() if number == token[1])
    return f"turn {token[0]:g}, {phase} step {token[2]:g}"


def _columns(path: Path) -> np.ndarray:
    """Return the rows as (rows, 7) float64, in the order of COLUMNS."""
    rows: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise ValueError(f"expected the columns {', '.join(COLUMNS)}, got none named {', '.join(missing)}")
            for number, row in enumerate(reader, start=2):
                try:
                    rows.append([PHASES[row[n]] if n == "phase" else float(row[n]) for n in COLUMNS])
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"line {number}: expected numbers and a phase of prefill or decode") from error
    except (UnicodeDecodeError, csv.Error, ValueError) as error:
        raise ValueError(f"trace: {path}: {error}") from error
    if not rows:
        raise ValueError(f"trace: {path}: expected at least one row, got none")
    return np.array(rows)


def save_csv(trace: RouteTrace, path: str | Path) -> None:
    """Write a trace as a table; a token is a `decode` step, and what the table has no column for is left out."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for turn in range(len(trace)):
            begin, end = int(trace.starts[turn]), int(trace.starts[turn + 1])
            for n in range(begin, end):
                for (layer, slot), expert in np.ndenumerate(trace.experts[n]):
                    weight = 1.0 if trace.weights is None else trace.weights[n, layer, slot]
                    if expert < trace.num_experts:
                        writer.writerow([turn, "decode", n - begin, layer, slot, expert, f"{weight:.6g}"])
