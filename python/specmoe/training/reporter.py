"""What a run shows while it works: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Reporter:
    """Prints to standard error; use it as a context manager."""

    def __init__(self, steps: int, progress: bool | None) -> None:
        """Prepares the display.

        Args:
            steps: optimizer steps in all.
            progress: show a bar; None shows one where standard error is a terminal.
        """
        show = sys.stderr.isatty() if progress is None else progress
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        if show:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self.task = self.bar.add_task("training", total=steps)

    def __enter__(self) -> Reporter:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def line(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, markup=False)

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def training(self, step: int, steps: int, values: dict[str, float]) -> None:
        """Reports a line of the history: on the bar where there is one, else as text."""
        speed = f"{values['tokens_per_second']:,.0f} tokens/s"
        if self.bar is not None:
            # Short: the bar, the step and two times share an 80-column line with it.
            self.bar.update(self.task, description=f"loss {values['loss']:.3f} {speed}")
        else:
            terms = f"cross-entropy {values['cross_entropy']:.4f}  balance {values['load_balance']:.3f}"
            self.line(f"step {step}/{steps}  loss {values['loss']:.4f}  {terms}  {speed}")

    def tuning(self, step: int, steps: int, loss: float, speed: float) -> None:
        """Reports a line of a tuning run's history: its loss in nats per token and its tokens a second."""
        if self.bar is not None:
            self.bar.update(self.task, description=f"loss {loss:.3f} {speed:,.0f} tokens/s")
        else:
            self.line(f"step {step}/{steps}  loss {loss:.4f}  {speed:,.0f} tokens/s")
