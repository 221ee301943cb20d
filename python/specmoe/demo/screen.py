"""What a demo shows: lines, bars where there is a terminal, one table, one picture."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specmoe.offload.bench import ArmResult, interpret, plot_results, results_table
from specmoe.offload.budget import format_bytes

PLAIN_WIDTH = 120


class Screen:
    """Prints results to standard output and progress to standard error; plain text where they are no terminal."""

    def __init__(self) -> None:
        self.plain = not sys.stdout.isatty()
        self._out = Console(highlight=False, width=PLAIN_WIDTH if self.plain else None, soft_wrap=self.plain)
        self._err = Console(stderr=True)

    def say(self, text: str) -> None:
        """Print a line."""
        self._out.print(text, markup=False)

    def table(self, table: Table) -> None:
        """Print a table."""
        self._out.print(table, soft_wrap=False)

    @contextmanager
    def progress(self, steps: int, doing: str) -> Iterator[Callable[[str], None]]:
        """Show a bar of so many steps; call what this yields, with what comes next, before each."""
        if not self._err.is_terminal:
            self.say(f"{doing} ...")
            yield lambda _: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(doing, total=steps)

            def step(what: str) -> None:
                bar.update(task, description=f"{doing}: {what}" if what else doing, advance=1)

            yield step

    def report(self, results: Sequence[ArmResult], title: str, mode: str, plot: Path) -> None:
        """Print the table, where the bytes came from, what the numbers say, and draw the plot."""
        self.say(f"\n{title}")
        self._out.print(results_table(results, self.plain), soft_wrap=False)
        cached = [result.cached_bytes for result in results if not result.arm.resident]
        if mode == "direct":
            source = "Every read went past the page cache (O_DIRECT)"
        else:
            source = f"Reads were {mode}, the file's pages dropped before each run"
        if None in cached:
            source += "; how many bytes the page cache served is not known here"
        else:
            served = sum(count for count in cached if count is not None)
            source += f"; the page cache served {format_bytes(served)} of {format_bytes(_loaded(results))}"
        self.say(f"{source}.")
        sentence = interpret(results)
        self.say(sentence)
        plot_results(results, title, sentence, plot)
        self.say(f"plot: {plot.resolve()}")


def _loaded(results: Sequence[ArmResult]) -> int:
    totals = [result.total for result in results]
    return sum(t.demand_bytes + t.useful_bytes + t.wasted_bytes for t in totals)
