"""Text as it is generated, and a line below it that says how the experts came."""

from __future__ import annotations

import sys
import time
from typing import Any


class Printer:
    """Prints tokens as they come, as soon as they complete a character; a streamer for `generate`.

    Args:
        tokenizer: what turns ids into text.
        status: what is shown below the text; None for nothing.
    """

    def __init__(self, tokenizer: Any, status: StatusLine | None = None) -> None:
        self.tokenizer = tokenizer
        self.status = status
        # What a token looks like may depend on those before it, such as whether a space stands between them.
        self.ids: list[int] = []
        self.context = self.shown = 0
        self.skipping = False

    def skip_prompt(self) -> None:
        """The next tokens that `generate` hands over are the prompt, which was shown before."""
        self.skipping = True

    def put(self, value: Any) -> None:
        """Takes tokens from `generate`."""
        if not self.skipping:
            self.show(value)
            if self.status is not None:
                self.status.count()
        self.skipping = False

    def end(self) -> None:
        """`generate` is done; the text may go on."""

    def show(self, value: Any) -> None:
        """Prints tokens."""
        self.ids += value.reshape(-1).tolist()
        # An unfinished multi-byte character decodes to the replacement character.
        if not (text := self._news()).endswith("\ufffd"):
            self._write(text)

    def finish(self) -> None:
        """Prints what is left, ends the line, and leaves the last status."""
        self._write(self._news() + "\n")
        if self.status is not None:
            self.status.finish()

    def _news(self) -> str:
        """Returns the text of the tokens that were not shown yet."""
        before = self.tokenizer.decode(self.ids[self.context : self.shown])
        return self.tokenizer.decode(self.ids[self.context :])[len(before) :]

    def _write(self, text: str) -> None:
        if self.status is not None:
            self.status.hide()
        sys.stdout.write(text)
        sys.stdout.flush()
        self.context, self.shown = self.shown, len(self.ids)


class StatusLine:
    """One line on a terminal's title, and at the end on standard error: tokens/s, hits, bytes.

    The line is shown where standard error is a terminal and standard output is not: between the pieces of a text on the
    same screen it would only flicker, and there it goes into the window's title.

    Args:
        engine: an `Offload`.
    """

    INTERVAL = 0.25

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.tokens = 0
        self.begin = self.shown = time.perf_counter()
        self._first: float | None = None
        self._visible = False

    def count(self) -> None:
        """Notes a token, and shows the line if it is time."""
        now = time.perf_counter()
        self.tokens += 1
        self._first = self._first or now
        if sys.stderr.isatty() and now - self.shown >= self.INTERVAL:
            self.shown = now
            if sys.stdout.isatty():
                sys.stderr.write(f"\x1b]0;specmoe: {self.text()}\x07")
            else:
                sys.stderr.write(f"\r\x1b[2K{self.text()}")
                self._visible = True
            sys.stderr.flush()

    def hide(self) -> None:
        """Clears the line."""
        if self._visible:
            sys.stderr.write("\r\x1b[2K")
            self._visible = False

    def finish(self) -> None:
        """Leaves the last state on standard error."""
        self.hide()
        print(self.text(), file=sys.stderr, flush=True)

    def text(self) -> str:
        """Returns the line: the first token, which waits for the whole prompt, is not in the rate."""
        from ..offload.budget import format_bytes

        stats, pool = self.engine.stats, self.engine.tier.pool
        now = time.perf_counter()
        rate = (self.tokens - 1) / (now - self._first) if self._first and self.tokens > 1 and now > self._first else 0.0
        read = stats.loads * self.engine.store.layout.stored_bytes
        each = read / self.tokens if self.tokens else 0.0
        return (
            f"{self.tokens} tokens, {rate:.2f} tokens/s, {stats.hit_rate:.1%} of experts in memory "
            f"({format_bytes(pool.nbytes)}), {format_bytes(read)} read ({format_bytes(each)} a token), "
            f"waited {stats.stall_seconds:.1f} s"
        )
