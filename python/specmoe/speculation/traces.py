"""Recorded routes: which experts every token of a set of sequences used.

File format: a NumPy `.npz` with
- `experts` (N, L, K) unsigned integers: the experts of each decoded token, largest weight first;
- `trace_start` (traces + 1) integers: where each sequence begins among the N tokens, then N;
- optionally `num_experts` (), E; without it E is one more than the largest id seen.

Other entries are ignored. Letters: N tokens, L layers, K experts per token, E experts.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class RouteTrace:
    """Routes of several sequences, laid end to end.

    Args:
        experts: (N, L, K) integer ids.
        starts: (traces + 1) int64, half-open bounds of the sequences.
        num_experts: E.
    """

    experts: np.ndarray
    starts: np.ndarray
    num_experts: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def sequence(self, index: int) -> np.ndarray:
        """Return the routes (n, L, K) of one sequence."""
        return self.experts[self.starts[index] : self.starts[index + 1]]

    def take(self, indices: np.ndarray) -> RouteTrace:
        """Return the sequences named, in that order."""
        parts = [self.sequence(int(i)) for i in indices]
        starts = np.cumsum([0, *map(len, parts)])
        experts = np.concatenate(parts) if parts else self.experts[:0]
        return RouteTrace(experts, starts, self.num_experts)

    def layers(self, first: int, count: int) -> RouteTrace:
        """Return the same sequences over `count` consecutive layers."""
        return RouteTrace(self.experts[:, first : first + count], self.starts, self.num_experts)

    def split(self, held_out: float, seed: int = 0) -> tuple[RouteTrace, RouteTrace]:
        """Part whole sequences at random into (kept, held out); windows of one sequence never meet on both sides."""
        if len(self) < 2 or not 0 < held_out < 1:
            raise ValueError(
                f"split: expected at least 2 sequences and a share in (0, 1), got {len(self)} and {held_out}"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(1, round(held_out * len(self))), len(self) - 1)
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))


def load_routes(path: str | Path) -> RouteTrace:
    """Read a trace file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a trace; the message says what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"trace: no file at {path}")
    names = ("experts", "trace_start", "num_experts")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in names if name in archive.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        # What NumPy raises for a file of another kind, or a damaged one, depends on which bytes are wrong.
        raise ValueError(f"trace: {path}: expected a NumPy .npz file, got one that cannot be read ({error})") from error
    missing = [name for name in ("experts", "trace_start") if name not in arrays]
    if missing:
        raise ValueError(f"trace: {path}: expected the arrays experts and trace_start, got none named {missing}")
    experts, starts = arrays["experts"], arrays["trace_start"]
    if experts.ndim != 3 or experts.dtype.kind not in "iu" or 0 in experts.shape:
        raise ValueError(
            f"trace: {path}: experts: expected integers of shape (N, L, K), got {experts.dtype} {experts.shape}"
        )
    ordered = starts.ndim == 1 and starts.dtype.kind in "iu" and len(starts) >= 2 and bool((np.diff(starts) > 0).all())
    if not ordered or starts[0] != 0 or starts[-1] != len(experts):
        raise ValueError(
            f"trace: {path}: trace_start: expected rising bounds from 0 to N={len(experts)}, got {starts.dtype} "
            f"{starts.shape}"
        )
    num_experts = int(experts.max()) + 1
    if "num_experts" in arrays:
        declared = int(arrays["num_experts"])
        if declared < num_experts or int(experts.min()) < 0:
            raise ValueError(f"trace: {path}: experts: expected ids in [0, E={declared}), got up to {num_experts - 1}")
        num_experts = declared
    return RouteTrace(experts, starts.astype(np.int64), num_experts)


def save_routes(trace: RouteTrace, path: str | Path) -> None:
    """Write a trace file, complete or not at all."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file, experts=trace.experts, trace_start=trace.starts, num_experts=np.int64(trace.num_experts)
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
