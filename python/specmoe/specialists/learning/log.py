"""Corrections as they came, and what became of each: lines that are only ever added, and on the disk before use."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOG_FILE = "corrections.jsonl"
# What a correction can be: stored but not learned yet, learned, not learned, or learned and taken back.
WAITING, KEPT, REVERTED, UNDONE = "waiting", "kept", "reverted", "undone"


@dataclass(frozen=True)
class Correction:
    """What a user wants to be answered.

    Attributes:
        number: from 1 on.
        query, answer: what is asked, and what is the right answer.
        specialist: whose adapter learns it.
    """

    number: int
    query: str
    answer: str
    specialist: str


class CorrectionLog:
    """The corrections of a family.

    Attributes:
        corrections: in the order in which they came.
        states: of each number, one of the constants of this module; in the order in which they were decided.
        reasons: why a correction has its state, by number; of one that is kept the digest of the adapter's weights.
    """

    def __init__(self, folder: Path) -> None:
        """Reads what there is; a last line that was cut by a crash is left out.

        Raises:
            ValueError: another line is damaged.
        """
        self.path = folder / LOG_FILE
        self.corrections: list[Correction] = []
        self.states: dict[int, str] = {}
        self.reasons: dict[int, str] = {}
        self._read = 0
        lines = self.path.read_text(encoding="utf-8", errors="replace").split("\n") if self.path.is_file() else [""]
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise ValueError(f"corrections: {self.path}: line {number}: damaged: {error!r}") from error
            else:
                self._read = number
        # What a crash has left of a line that nobody was told of; a whole one lacks its end alone.
        self._cut = bool(lines[-1]) and self._read < len(lines)
        self._unended = bool(lines[-1]) and not self._cut

    def add(self, query: str, answer: str, specialist: str) -> Correction:
        """Stores a correction; it is on the disk when this returns."""
        correction = Correction(len(self.corrections) + 1, query, answer, specialist)
        self._write({"correction": asdict(correction)})
        return correction

    def decide(self, number: int, state: str, reason: str = "") -> None:
        """Stores what has become of a correction."""
        self._write({"number": number, "state": state, "reason": reason})

    def numbers(self, state: str, specialist: str | None = None) -> list[int]:
        """Returns the corrections in a state, of one specialist or of all, in the order in which they came into it."""
        return [
            number
            for number, its in self.states.items()
            if its == state and specialist in (None, self.corrections[number - 1].specialist)
        ]

    def _write(self, told: dict[str, Any]) -> None:
        rest = b"\n" * self._unended + (json.dumps(told, ensure_ascii=False) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            if self._cut:
                file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
            end = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except BaseException:
                # A full disk: no piece of a line stays for the next one to be glued to.
                file.truncate(end)
                raise
        self._cut = self._unended = False
        self._take(told)

    def _take(self, told: dict[str, Any]) -> None:
        if "correction" in told:
            correction = Correction(**told["correction"])
            self.corrections.append(correction)
            self.states[correction.number] = WAITING
        else:
            number = int(told["number"])
            self.states.pop(number, None)  # the last decided comes last
            self.states[number], self.reasons[number] = str(told["state"]), str(told["reason"])
