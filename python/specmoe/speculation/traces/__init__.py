"""Recorded routes: one format in memory and on disk, its readers, and a recorder for models."""

from __future__ import annotations

from pathlib import Path

from .csv_file import load_csv
from .npz_file import load_npz, save_routes
from .record import record_trace
from .trace import RouteTrace

__all__ = ["RouteTrace", "load_csv", "load_npz", "load_routes", "record_trace", "save_routes"]


def load_routes(path: str | Path) -> RouteTrace:
    """Read a trace file: `.csv` by its columns, anything else as `.npz`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a trace; the message says what is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"trace: no file at {path}")
    return load_csv(path) if path.suffix.lower() == ".csv" else load_npz(path)
