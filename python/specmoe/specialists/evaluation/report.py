"""The report of an evaluation: JSON for programs, Markdown for readers, heat maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...training.files import replace_file
from .plot import plot_shares
from .scores import ALONE, CODEC, VERIFIED, Evaluation

JSON_FILE, TABLE_FILE = "evaluation.json", "evaluation.md"
KINDS_PLOT, NOTATIONS_PLOT = "exact-match.png", "exact-match-notations.png"


def write_report(found: Evaluation, folder: Path) -> list[Path]:
    """Writes the report and returns its files.

    Args:
        found: the evaluation.
        folder: where to; made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = json.dumps(found.told(), indent=1, ensure_ascii=False)
    replace_file(folder / JSON_FILE, lambda partial: partial.write_text(told, encoding="utf-8"))
    replace_file(folder / TABLE_FILE, lambda partial: partial.write_text(markdown(found), encoding="utf-8"))
    _plot(found, folder / KINDS_PLOT, "kind of task", notations=False)
    _plot(found, folder / NOTATIONS_PLOT, "source and target notation", notations=True)
    return [folder / name for name in (JSON_FILE, TABLE_FILE, KINDS_PLOT, NOTATIONS_PLOT)]


def markdown(found: Evaluation) -> str:
    """Returns the report as Markdown."""
    ways = (ALONE, VERIFIED, CODEC)
    rows = []
    for name in [*found.tallies[ALONE], "all"]:
        alone, verified, codec = (found.total(way, None if name == "all" else [name]) for way in ways)
        loss = f"{found.loss[name]:.4f}" if name in found.loss else ""
        rows.append(
            [name, f"{alone.cases:,}", _percent(alone.exact), _percent(verified.precision, 2),
             _percent(verified.coverage), _percent(codec.exact), loss]
        )  # fmt: skip
    head = ["", "conversions", f"{ALONE}: exact", f"{VERIFIED}: right of those answered", f"{VERIFIED}: answered",
            f"{CODEC}: exact", "loss"]  # fmt: skip
    parts = ["# Evaluation of the specialists", _table(head, rows), _groups(found)]
    if any(found.texts.values()):
        texts = [[name, kind, f"{t.cases:,}", _percent(t.exact)] for name, kinds in found.texts.items()
                 for kind, t in sorted(kinds.items())]  # fmt: skip
        parts += ["Sentences and names, the model alone:", _table(["", "kind", "cases", "exact"], texts)]
    figures = [[name, _percent(share, 2)] for name, share in found.routing.items()]
    parts += ["Routing to the right specialist:", _table(["router", "right"], figures), _figures(found)]
    return "\n\n".join(parts) + "\n"


def _groups(found: Evaluation) -> str:
    """Returns exact matches of the models alone by kind and by notations."""
    rows = []
    for name, groups in found.tallies[ALONE].items():
        for group, tally in groups.items():
            if group != "all":
                verified = found.tallies[VERIFIED][name][group]
                rows.append(
                    [name, group, f"{tally.cases:,}", _percent(tally.exact), _percent(verified.precision, 2),
                     _percent(verified.coverage)]
                )  # fmt: skip
    rows.sort(key=lambda row: (" to " in row[1], list(found.tallies[ALONE]).index(row[0]), row[1]))
    return _table(["", "kind or notations", "cases", f"{ALONE}: exact", "verified: right", "verified: answered"], rows)


def _figures(found: Evaluation) -> str:
    figures = found.figures
    adapters = ", ".join(f"{name} {size / 2**10:,.0f} KiB" for name, size in figures["adapter bytes"].items())
    return "\n".join(
        [
            f"- base in NF4: {figures['base bytes'] / 2**20:.2f} MiB; adapters: {adapters}",
            f"- loading the base and all adapters: {figures['load seconds, base and all adapters']:.2f} s",
            f"- generated in batches of {figures['batch']}: "
            f"{figures['tokens per second, generated, in batches']:,.0f} tokens/s",
            f"- most memory of the process: {figures['peak memory bytes'] / 2**20:,.0f} MiB, "
            f"{figures['peak memory bytes, before loading'] / 2**20:,.0f} MiB before the models were opened",
        ]
    )


def _plot(found: Evaluation, path: Path, columns: str, notations: bool) -> None:
    """Draws the models' own exact matches."""
    table = {
        name: {g: tally.exact for g, tally in groups.items() if g != "all" and (" to " in g) is notations}
        for name, groups in found.tallies[ALONE].items()
    }
    plot_shares(table, path, "Exact match of the models alone", columns)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["--:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"
