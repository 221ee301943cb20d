"""Rows of the table, and the JSON file that they are kept in from the first one on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One case by one arm.

    Attributes:
        group: what is measured, a key of plan.GROUPS.
        case: the name of the shape, or what else tells cases apart.
        T: tokens (rows for grouped_lora).
        arm: a backend of ours or a peer.
        status: "ok", "skipped" (cannot run here), "wrong" (its result is), or "failed" (an error, a hang).
        reason: of any other status than "ok".
        seconds, low, high: median and the 10th and 90th percentile of one call.
        repeats: timed calls.
        first: seconds of the first call, compilation included.
        operations, nbytes: that the work needs at least.
        floor: seconds that it needs at least.
        bound: which ceiling makes the floor.
        error: relative error against a float32 loop.
        ratio: another figure of this row, e.g. times slower than without batch invariance.
        ratio_of: what `ratio` is.
        sizes: of the layer.
    """

    group: str
    case: str
    T: int
    arm: str
    status: str = "ok"
    reason: str = ""
    seconds: float = 0.0
    low: float = 0.0
    high: float = 0.0
    repeats: int = 0
    first: float = 0.0
    operations: float = 0.0
    nbytes: float = 0.0
    floor: float = 0.0
    bound: str = ""
    error: float | None = None
    ratio: float | None = None
    ratio_of: str = ""
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def of_floor(self) -> float | None:
        """The fraction of the floor that is reached; 1 is as fast as the device can be."""
        return self.floor / self.seconds if self.seconds and self.floor else None


NAME = "gpu.json"
# How the reason of a row begins whose library is not there: its other rows need not be tried.
NOT_IMPORTABLE = "not importable: "


def load(folder: Path) -> dict[str, Any]:
    """Return what the file in this folder holds: device, versions, ceilings, parts, unavailable, rows."""
    path = folder / NAME
    empty: dict[str, Any] = {"parts": {}, "unavailable": {}, "rows": []}
    return empty | (json.loads(path.read_text()) if path.exists() else {})


def save(folder: Path, data: dict[str, Any]) -> None:
    """Replace the file at once: whoever stops the run finds the old one or the new one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / f".{NAME}"
    try:
        fresh.write_text(json.dumps(data, indent=1) + "\n")
        os.replace(fresh, folder / NAME)
    finally:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()


def rows_of(data: dict[str, Any]) -> list[Row]:
    return [Row(**row) for row in data["rows"]]


def keep(data: dict[str, Any], row: Row) -> None:
    """Put a row in, in place of an older one of the same case and arm."""
    same = (row.group, row.case, row.T, row.arm)
    data["rows"] = [r for r in data["rows"] if (r["group"], r["case"], r["T"], r["arm"]) != same]
    data["rows"].append(dataclasses.asdict(row))
