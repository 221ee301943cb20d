"""What `specmoe hierarchical eval` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ..hierarchical import Report
from ..training.evaluate import perplexity


def print_report(report: Report) -> None:
    """Prints the losses of experts by domain, and below them what the answers are like."""
    console = Console(highlight=False, soft_wrap=True)
    domains = list(report.routed)
    table = Table("", *domains, "mean", title="held-out loss, nats per token", title_justify="left")
    for name, row in report.losses.items():
        table.add_row(name, *_numbers(row, domains), f"{report.mean(row):.3f}")
    table.add_section()
    right = report.right_expert
    for name, row in (
        ("right expert", right), ("routed", report.routed), ("without update", report.routed_without_update),
    ):  # fmt: skip
        table.add_row(name, *_numbers(row, domains), f"{report.mean(row):.3f}")
    table.add_row("perplexity, right", *(f"{perplexity(right[domain]):.2f}" for domain in domains), "")
    table.add_row("router right", *(f"{report.router_accuracy[domain]:.1%}" for domain in domains), "")
    for way, generated in report.generated.items():
        table.add_section()
        for name, value in _LINES:
            cells = [value(generated[domain]) for domain in domains]
            table.add_row(f"{way}: {name}", *("" if cell is None else cell for cell in cells), "")
    console.print(table)
    console.print(f"the routed system's loss is {report.routing_cost:+.2%} beside always choosing the right expert")


def _numbers(row: dict[str, float], domains: list[str]) -> list[str]:
    return [f"{row[domain]:.3f}" for domain in domains]


_LINES: tuple[tuple[str, Any], ...] = (
    ("stop rate", lambda g: f"{g.stop_rate:.1%}"),
    ("4-gram repeats", lambda g: f"{g.texts.repeat_4:.1%} (data {g.data.repeat_4:.1%})"),
    ("distinct-1", lambda g: f"{g.texts.distinct_1:.2f} (data {g.data.distinct_1:.2f})"),
    ("distinct-2", lambda g: f"{g.texts.distinct_2:.2f} (data {g.data.distinct_2:.2f})"),
    ("words", lambda g: f"{g.texts.words:.0f} (data {g.data.words:.0f})"),
    ("right answers", lambda g: None if g.accuracy is None else f"{g.accuracy:.1%}"),
)
