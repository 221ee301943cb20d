"""One record for each row of the tables, the tables, and the JSON file that collects the rows of several runs."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any


@cache
def processor() -> str:
    """The processor's name, as the tables give it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass
class Record:
    """One row: the same work by each arm.

    Attributes:
        op: what was run.
        shape: the case's name, e.g. "OLMoE".
        sizes: E, K, H, I.
        seconds: median of each arm; the first is ours.
        rounds: of each arm.
        distance: relative RMS distance of each arm's result from ours.
        nbytes: that the work must at least read and write.
        operations: that it must at least do, a multiply-add being two.
        read: bytes per second of reading memory, measured just before and after.
        product: operations per second of the fastest register loop for the row's products.
        how: the name of that loop.
        note: what else there is to say.
        isa: what our kernels ran on.
    """

    op: str
    shape: str
    sizes: dict[str, int]
    T: int
    dtype: str
    threads: int
    seconds: dict[str, float]
    rounds: dict[str, int]
    distance: dict[str, float]
    nbytes: float
    operations: float
    read: float
    product: float
    how: str
    note: str = ""
    date: str = ""
    isa: str = ""
    cpu: str = field(default_factory=processor)

    @property
    def key(self) -> tuple[object, ...]:
        return (self.cpu, self.threads, self.op, self.shape, self.dtype, self.T)

    @property
    def ours(self) -> float:
        return next(iter(self.seconds.values()))

    @property
    def floor(self) -> float:
        """Seconds that the hardware needs at least."""
        return max(self.nbytes / self.read, self.operations / self.product)

    @property
    def bound(self) -> str:
        return "read" if self.nbytes / self.read > self.operations / self.product else self.how

    def beside_ours(self) -> dict[str, Any]:
        """What pytest-benchmark reports beside the time of ours."""
        _, *peers = self.seconds
        return {
            "peers_median_seconds": {name: self.seconds[name] for name in peers},
            "floor_seconds": self.floor,
            "fraction_of_floor": self.floor / self.ours,
            "bound": self.bound,
            "threads": self.threads,
        }


def merge(path: Path, records: Iterable[Record]) -> list[Record]:
    """Put `records` into the JSON file in place of older ones of the same case, and return all that it then holds."""
    known = {record.key: record for record in load(path)}
    known.update((record.key, record) for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps([dataclasses.asdict(record) for record in known.values()], indent=1) + "\n")
    fresh.replace(path)
    return list(known.values())


def load(path: Path) -> list[Record]:
    """Return the records of a JSON file that `merge` wrote; none where there is no file."""
    return [Record(**record) for record in json.loads(path.read_text())] if path.exists() else []


def tables(records: list[Record]) -> list[str]:
    """Return the lines of one Markdown table for each op, dtype, processor and number of threads."""
    lines: list[str] = []
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record.op, record.dtype, record.cpu, record.threads), []).append(record)
    for (op, dtype, cpu, threads), group in groups.items():
        # A peer that runs nowhere in the group has no column.
        peers = list(dict.fromkeys(name for record in group for name in list(record.seconds)[1:]))
        dates = sorted({record.date for record in group if record.date})
        lines += [
            f"**{op}, {dtype}** ({cpu}, {threads} threads, {' to '.join(dict.fromkeys(dates[:1] + dates[-1:]))})",
            "",
        ]
        rows = [["case", "T", "ms", "floor ms", "bound", "of floor", "TFLOP/s", *peers]]
        for record in sorted(group, key=lambda r: (r.shape, r.T)):
            rate = f"{record.operations / record.ours / 1e12:.3f}" if record.operations else "-"
            rows.append(
                [record.shape, str(record.T), f"{record.ours * 1e3:.3f}", f"{record.floor * 1e3:.3f}", record.bound]
                + [f"{record.floor / record.ours:.2f}", rate]
                + [_ratio(record.seconds.get(name), record) for name in peers]
            )
        notes = dict.fromkeys(f"{r.shape}, T={r.T}: {r.note}" for r in group if r.note)
        lines += [*_aligned(rows), "", *(f"- {note}" for note in notes), *([""] if notes else [])]
        lines += _distances(group, peers)
    return lines


def _ratio(seconds: float | None, record: Record) -> str:
    return "-" if seconds is None else f"{seconds / record.ours:.2f}x"


def _distances(group: list[Record], peers: list[str]) -> list[str]:
    worst = {name: max((r.distance[name] for r in group if name in r.distance), default=None) for name in peers}
    told = [f"{name} {value:.1e}" for name, value in worst.items() if value is not None]
    return [f"largest relative distance from our result: {', '.join(told)}", ""] if told else []


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Text to the left, numbers to the right.
    left = {0, 4}

    def line(row: list[str]) -> str:
        cells = (c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        return f"| {' | '.join(cells)} |"

    rule = "|".join("-" * (w + 2) if i in left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return [line(rows[0]), f"|{rule}|", *map(line, rows[1:])]
