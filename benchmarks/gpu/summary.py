"""The one table of a run, gpu.md, and the figure: `python benchmarks/gpu/summary.py FOLDER` makes them again.

`summary.py FOLDER part NAME STATUS SECONDS [DETAIL]` puts what another check has found into FOLDER/gpu.json.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from gpu import results  # noqa: E402
from gpu.bars import bars  # noqa: E402
from gpu.results import Row  # noqa: E402

# Named here and not imported: the table must come out where torch does not load.
PEERS = ("torch grouped_mm", "ScatterMoE", "Liger", "SonicMoE", "vLLM")
# The ops whose backend moe_kernels/preferences.py chooses, by the group of their rows.
OP_OF = {"forward": "fused_experts", "decode": "fused_experts"}
OP_OF |= {op: op for op in ("topk_gating", "route", "permute", "unpermute", "grouped_lora")}
HEADER = ["what", "case", "T", "by", "ms", "of floor", "bound", "TFLOP/s", "GB/s", "error", "ours/this", "note"]
RIGHT = {2, 4, 5, 7, 8, 9, 10}


def _aligned(table: list[list[str]], right: set[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]

    def line(cells: list[str]) -> str:
        told = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return f"| {' | '.join(told)} |"

    rule = "|".join("-" * (w + 1) + (":" if i in right else "-") for i, w in enumerate(widths))
    return [line(table[0]), f"|{rule}|", *map(line, table[1:])]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}" if seconds >= 1e-2 else f"{seconds * 1e3:.4f}"


def _cells(row: Row, best: dict[tuple[str, str, int], Row]) -> list[str]:
    cells = [row.group, row.case, str(row.T), row.arm]
    note = f"{row.ratio:.2f} ({row.ratio_of})" if row.ratio is not None else ""
    if row.status != "ok":
        note = f"{row.status.upper()}: {row.reason}".replace("|", "/")[:100]
    elif row.group in ("forward", "forward+backward") and "E" in row.sizes:
        note = f"E={row.sizes['E']}" + (f", first call {row.first:.0f} s" if row.first > 5 else "")
    if not row.seconds or row.status != "ok":
        error = f"{row.error:.1e}" if row.error is not None else ""
        return [*cells, "", "", "", "", "", error, "", note]
    ours = best.get((row.group, row.case, row.T))
    return [
        *cells,
        _milliseconds(row.seconds),
        f"{row.of_floor:.2f}" if row.of_floor else "",
        row.bound,
        f"{row.operations / row.seconds / 1e12:.1f}" if row.operations else "",
        f"{row.nbytes / row.seconds / 1e9:.0f}",
        f"{row.error:.1e}" if row.error is not None else "",
        f"{row.seconds / ours.seconds:.2f}x" if ours and row.arm in PEERS else "",
        note,
    ]


def lines(data: dict[str, Any]) -> list[str]:
    """Return the lines of gpu.md."""
    rows = results.rows_of(data)
    told = [f"# GPU check: {data.get('device', 'no device')}", "", f"{data.get('about', '')}, {data.get('date', '')}"]
    told.append(", ".join(f"{name} {version}" for name, version in data.get("versions", {}).items()))
    if data.get("small"):
        told.append("SMALL SIZES: to try the harness; no figure here says anything about speed.")
    if ceilings := data.get("ceilings"):
        told.append(
            f"ceilings: matmul {ceilings['matmul'] / 1e12:.1f} TFLOP/s, copy {ceilings['copy'] / 1e9:.0f} GB/s "
            f"(read and written bytes), read {ceilings['read'] / 1e9:.0f} GB/s"
        )
    told += ["", *_parts(data), *_rows(rows), *_bars(rows), *_preferences(rows)]
    told += [f"no {arm}: {reason}" for arm, reason in data["unavailable"].items()]
    return told


def _parts(data: dict[str, Any]) -> list[str]:
    if not data["parts"]:
        return []
    table = [["part", "result", "s", "what it said"]]
    table += [
        [name, part["status"], f"{part['seconds']:.0f}", part["detail"].replace("|", "/")]
        for name, part in data["parts"].items()
    ]
    return [*_aligned(table, {2}), ""]


def _rows(rows: list[Row]) -> list[str]:
    """The table; rows that cannot run are told by their reasons, below it."""
    best: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        key = (row.group, row.case, row.T)
        if row.status == "ok" and row.seconds and row.arm not in PEERS:
            best[key] = min(row, best.get(key, row), key=lambda r: r.seconds)
    order = {group: i for i, group in enumerate(dict.fromkeys(row.group for row in rows))}
    shown = sorted(
        (r for r in rows if r.status != "skipped"), key=lambda r: (order[r.group], -r.T if r.T > 64 else r.T)
    )
    told: list[str] = []
    if shown:
        told += [*_aligned([HEADER, *(_cells(row, best) for row in shown)], RIGHT), ""]
    reasons: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status == "skipped":
            reasons.setdefault((row.arm, row.reason), []).append(row)
    for (arm, reason), group in reasons.items():
        what = ", ".join(dict.fromkeys(row.group for row in group))
        told.append(f"not measured: {arm}, {len(group)} rows ({what}): {reason}")
    return [*told, ""] if reasons else told


def _bars(rows: list[Row]) -> list[str]:
    found = [bar for bar in bars(rows, set(PEERS)) if bar.got is not None]
    if not found:
        return []
    table = [["goal", "case", "wanted", "got", "met", "by"]]
    table += [[b.what, b.case, b.wanted, f"{b.got:.2f}", "yes" if b.met else "NO", b.by] for b in found]
    return [*_aligned(table, {3}), ""]


def _preferences(rows: list[Row]) -> list[str]:
    """What belongs in moe_kernels/preferences.py: where several of our backends were timed, which is the fastest."""
    timed: dict[tuple[str, int, str], list[Row]] = {}
    for row in rows:
        if row.status == "ok" and row.seconds and row.arm not in PEERS and row.group in OP_OF:
            timed.setdefault((OP_OF[row.group], row.T, row.case), []).append(row)
    table = [["op", "case", "T", "fastest", "the next takes", "by"]]
    for (op, T, case), group in sorted(timed.items()):
        if len(group) > 1:
            first, second = sorted(group, key=lambda row: row.seconds)[:2]
            table.append([op, case, str(T), first.arm, f"{second.seconds / first.seconds:.2f}x", second.arm])
    return ["for moe_kernels/preferences.py:", "", *_aligned(table, {2, 4}), ""] if len(table) > 1 else []


def write(folder: Path, data: dict[str, Any]) -> None:
    """Write gpu.md and, where there is matplotlib, gpu.png."""
    (folder / "gpu.md").write_text("\n".join(lines(data)) + "\n")
    try:
        from gpu.figure import draw
    except ImportError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return
    draw(data, folder / "gpu.png")


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0])
    data = results.load(folder)
    if arguments[1:2] == ["part"]:
        name, status, seconds, *detail = arguments[2:]
        data["parts"][name] = {"status": status, "seconds": float(seconds), "detail": " ".join(detail)[:300]}
        results.save(folder, data)
        return 0
    # Before the figure, which must not cost the table.
    print("\n".join(lines(data)), flush=True)
    write(folder, data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
