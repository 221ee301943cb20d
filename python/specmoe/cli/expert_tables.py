"""What `specmoe hierarchical eval` prints."""

from __future__ import annotations

from collections.abc import Callable

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..hierarchical import Report
from ..hierarchical.evaluation import Generated
from ..training.evaluate import perplexity

# A narrower terminal breaks the cells; a pipe or a file takes any width.
_WIDTH = 100


def print_report(report: Report) -> None:
    """Prints the losses of experts by domain, and below them what the answers are like."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    domains = list(report.routed)
    table = Table("held-out loss, nats per token", *domains, "mean", box=SIMPLE)
    for name, row in report.losses.items():
        table.add_row(f"{name} expert", *_losses(report, row))
    table.add_section()
    right = report.right_expert
    table.add_row("the right expert", *_losses(report, right))
    table.add_row("routed", *_losses(report, report.routed))
    table.add_row("routed, fixed weights", *_losses(report, report.routed_without_update))
    table.add_row("perplexity of the right one", *(f"{perplexity(right[domain]):.2f}" for domain in domains))
    table.add_row("router right", *(f"{report.router_accuracy[domain]:.1%}" for domain in domains))
    for way, generated in report.generated.items():
        table.add_section()
        for name, value in _LINES:
            table.add_row(f"{way}: {name}", *(value(generated[domain]) for domain in domains))
    console.print(table)
    if report.generated:
        console.print("In parentheses: the data, at equal lengths.")
    console.print(f"The routed system's loss is {report.routing_cost:+.2%} beside always choosing the right expert.")


def _losses(report: Report, row: dict[str, float]) -> list[str]:
    return [*(f"{row[domain]:.3f}" for domain in report.routed), f"{report.mean(row):.3f}"]


_LINES: tuple[tuple[str, Callable[[Generated], str]], ...] = (
    ("stop rate", lambda g: f"{g.stop_rate:.1%}"),
    ("4-gram repeats", lambda g: f"{g.texts.repeat_4:.1%} ({g.data.repeat_4:.1%})"),
    ("distinct-1", lambda g: f"{g.texts.distinct_1:.2f} ({g.data.distinct_1:.2f})"),
    ("distinct-2", lambda g: f"{g.texts.distinct_2:.2f} ({g.data.distinct_2:.2f})"),
    ("words", lambda g: f"{g.texts.words:.0f} ({g.data.words:.0f})"),
    ("right answers", lambda g: "" if g.accuracy is None else f"{g.accuracy:.1%}"),
)
