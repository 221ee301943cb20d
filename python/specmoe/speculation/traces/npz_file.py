"""The trace file: a NumPy `.npz`, described in docs/speculation.md.

| array | shape and type | |
|---|---|---|
| `experts` | (N, L, K) unsigned | the experts of each token, largest weight first |
| `trace_start` | (sequences + 1) integer | where each sequence begins among the N tokens, then N |
| `num_experts` | () integer | E; optional: without it E is one more than the largest id |
| `probs` | (N, L, K) floating | routing weights in the order of `experts`; optional |
| `token` | (N,) integer | the token that was routed, by any numbering; optional |
| `residual` | (N, L, H) floating | the residual stream that entered each layer's norm and gate; optional |
| `shared` | (N, L, H) floating | the output of each layer's shared expert; optional |
| `dataset` | (sequences,) text | where each sequence comes from; optional |

Other arrays are ignored. Letters: N tokens, L layers, K experts per token, E experts, H hidden.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..whole_file import whole_file
from .trace import RouteTrace

# Array in the file, field of RouteTrace, kinds of NumPy dtype, dimensions.
OPTIONAL = (
    ("probs", "weights", "f", 3),
    ("token", "tokens", "iu", 1),
    ("residual", "residuals", "f", 3),
    ("shared", "shared", "f", 3),
    ("dataset", "labels", "U", 1),
)


def load_npz(path: Path) -> RouteTrace:
    """Read a trace file.

    Raises:
        ValueError: it is not a trace; the message says what is wrong.
    """
    names = ("experts", "trace_start", "num_experts", *(row[0] for row in OPTIONAL))
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
    fields = _optional(path, arrays, experts.shape, len(starts) - 1)
    return RouteTrace(experts, starts.astype(np.int64), num_experts, **fields)


def _optional(
    path: Path, arrays: dict[str, np.ndarray], shape: tuple[int, ...], sequences: int
) -> dict[str, np.ndarray]:
    """Check the arrays that may be absent and name them as RouteTrace does."""
    fields: dict[str, np.ndarray] = {}
    for name, field, kinds, dims in OPTIONAL:
        if name not in arrays:
            continue
        values = arrays[name]
        want = {"weights": shape, "tokens": shape[:1], "labels": (sequences,)}.get(field, shape[:2])
        if values.dtype.kind not in kinds or values.ndim != dims or values.shape[: len(want)] != want:
            raise ValueError(
                f"trace: {path}: {name}: expected {dims} dimensions that begin with {want}, got {values.dtype} "
                f"{values.shape}"
            )
        fields[field] = values
    return fields


def save_routes(trace: RouteTrace, path: str | Path) -> None:
    """Write a trace file, complete or not at all."""
    path = Path(path)
    arrays: dict[str, Any] = {
        "experts": trace.experts,
        "trace_start": trace.starts,
        "num_experts": np.int64(trace.num_experts),
    }
    for name, field, _, _ in OPTIONAL:
        values = getattr(trace, field)
        if values is not None:
            arrays[name] = values
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
