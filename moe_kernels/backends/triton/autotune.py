"""Tiles by measurement instead of the table's, where `MOE_KERNELS_AUTOTUNE=1` asks for it.

The first call of a product of each class of shapes runs every candidate, and the fastest is kept: in memory, and in a
file for the GPU in the user's cache folder (`XDG_CACHE_HOME`, by default ~/.cache). What cannot be launched is passed
over. Nothing is measured while a CUDA graph is being captured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

from moe_kernels.backends.triton import platform
from moe_kernels.backends.triton.tiles import Tile

RUNS = 5
_found: dict[str, Tile] = {}


def asked_for() -> bool:
    return os.environ.get("MOE_KERNELS_AUTOTUNE", "0") not in ("", "0") and not platform.interpreted()


@cache
def _file(device: int) -> Path:
    """Name the file of a GPU's tiles; those that it has are read."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moe-kernels"
    gpu = "-".join(torch.cuda.get_device_name(device).split())
    path = folder / f"tiles-{gpu}-triton-{triton.__version__}.json"
    try:
        known = json.loads(path.read_text())
        _found.update({f"{device}:{key}": Tile(**tile) for key, tile in known.items()})
    except (OSError, ValueError, TypeError):
        # No file yet, or one that another version wrote: measured again.
        pass
    return path


def _write(device: int) -> None:
    path = _file(device)
    mine = {key.partition(":")[2]: vars(tile) for key, tile in _found.items() if key.startswith(f"{device}:")}
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(mine, indent=1, sort_keys=True))
        temporary.replace(path)
    except OSError:
        # A cache that cannot be written is no reason to fail: the next process measures again.
        temporary.unlink(missing_ok=True)


def _milliseconds(launch: Callable[[Tile], Any], tile: Tile) -> float:
    try:
        launch(tile)
    except Exception:
        # Whatever the compiler or the driver refuses is no candidate.
        return float("inf")
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(RUNS):
        launch(tile)
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def fastest(
    op: str,
    shape: Iterable[Hashable],
    device: int,
    tile: Tile,
    candidates: Iterable[Tile],
    launch: Callable[[Tile], Any],
) -> Tile:
    """Return the fastest of the tile and the candidates for a class of shapes, or the tile where nothing is measured.

    Args:
        op, shape: name the class; what it was measured for is looked up by them.
        device: the GPU's index.
        tile: the table's choice.
        candidates: the others.
        launch: runs the product with a tile, on the current stream, into buffers that may be written several times.
    """
    _file(device)
    key = f"{device}:{op} {' '.join(map(str, shape))}"
    if key not in _found:
        if torch.cuda.is_current_stream_capturing():
            return tile
        _found[key] = min((tile, *candidates), key=lambda candidate: _milliseconds(launch, candidate))
        _write(device)
    return _found[key]
