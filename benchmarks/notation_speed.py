"""How fast the HLX notations are written and read: `python benchmarks/notation_speed.py` prints a table in MB/s."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from specmoe.notation import NOTATIONS, Contract, Handle, Value, parse, render


def subjects(seed: int = 0) -> dict[str, list[Value]]:
    """Returns what is written and read: many small values, records, and integers."""
    draw = random.Random(seed)
    small: list[Value] = []
    for number in range(5000):
        small += [number - 2500, round(draw.random() * 100, 2), [number, "two words"], {"x": number, "name": "moon"}]
        small += [Contract(1000, {0: "search", 1: Handle("documents")})]
    records: list[Value] = [
        {
            "id": n,
            "name": f"user {n}",
            "score": n * 1.37,
            "active": n % 2 == 0,
            "tags": ["a", "b"],
            "ref": Handle("doc"),
        }
        for n in range(10_000)
    ]
    return {"small values": small, "records": [records], "integers": [list(range(100_000))]}


def rates(values: Sequence[Value], name: str, repeats: int = 3) -> tuple[float, float]:
    """Returns the MB/s of writing and of reading, the best of some repeats."""
    texts: list[Any] = [render(value, name) for value in values]
    size = sum(len(text if isinstance(text, bytes) else text.encode()) for text in texts) / 1e6

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return size / min(times)

    return best(lambda: [render(value, name) for value in values]), best(lambda: [parse(text, name) for text in texts])


def main() -> None:
    """Prints the table."""
    told = subjects()
    print("| |", " | ".join(f"{what}, render | parse" for what in told), "|")
    print("|---" * (1 + 2 * len(told)) + "|")
    for name, notation in NOTATIONS.items():
        cells = [f"{rate:.1f}" for values in told.values() for rate in rates(values, name)]
        print(f"| {notation.title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
