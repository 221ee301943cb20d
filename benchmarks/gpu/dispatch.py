"""Sends rows to workers, keeps what comes back, and decides which rows are not worth another worker."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gpu import results
from gpu.arms import PEERS
from gpu.results import Row

WORKER = Path(__file__).with_name("worker.py")
# Seconds for a worker to start and measure the ceilings, and for a row by device. A CPU only tries the harness.
START, FOR_A_ROW = 90.0, {"cuda": 25.0, "cpu": 150.0}
# Rows of an arm in a group, and in all groups, that may take their worker with them before the others are left out:
# a new worker takes seconds to start. One that hangs takes its whole time, and counts as all that a group may lose.
LOST_IN_A_GROUP, LOST_IN_ALL = 2, 6


class Stopped(Exception):
    """A worker ended, or did not answer in time."""


class NoAnswer(Stopped):
    """A worker did not answer in time."""


class Worker:
    """A process of worker.py."""

    def __init__(self, device: str, small: bool, ceilings: dict[str, float] | None) -> None:
        command = [sys.executable, str(WORKER), "--device", device]
        command += ["--small"] * small + (["--ceilings", json.dumps(ceilings)] if ceilings else [])
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.answers: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put(None)

    def answer(self, limit: float) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            NoAnswer: none within `limit` seconds.
            Stopped: the process is gone.
        """
        try:
            line = self.answers.get(timeout=max(0.1, limit))
        except queue.Empty:
            raise NoAnswer(f"no answer within {limit:.0f} s") from None
        if line is None:
            code = self.process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise Stopped(f"the process ended: {name}")
        return json.loads(line)

    def ask(self, row: Row, limit: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        # A process that is gone is found out by its missing answer.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(dataclasses.asdict(row)) + "\n")
        return self.answer(limit)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


class Dispatch:
    """The rows of one run.

    Args:
        data: what `results.load` gives; rows, ceilings and unavailable libraries are put into it.
        folder: where it is saved after each row.
        deadline: of time.monotonic().
    """

    def __init__(self, data: dict[str, Any], folder: Path, device: str, small: bool, deadline: float) -> None:
        self.data, self.folder, self.device, self.small, self.deadline = data, folder, device, small, deadline
        self.worker: Worker | None = None
        # The last reason of each arm and group whose rows took their worker with them, and how often they did.
        self.lost: collections.Counter[tuple[str, str]] = collections.Counter()
        self.why: dict[str, str] = {}

    def measure(self, rows: list[Row]) -> None:
        """Fill in the rows.

        Raises:
            Stopped: the ceilings cannot be measured.
        """
        try:
            for row in rows:
                if row.arm in self.data["unavailable"]:
                    continue
                row = self._filled(row)
                if row.arm in PEERS and row.reason.startswith(results.NOT_IMPORTABLE):
                    self.data["unavailable"][row.arm] = row.reason
                    continue
                results.keep(self.data, row)
                results.save(self.folder, self.data)
                took = f"{row.seconds * 1e3:.4g} ms" if row.seconds else ""
                name = f"{row.group}, {row.case}, T={row.T}, {row.arm}"
                print(f"{name}: {row.status} {row.reason} {took}".rstrip(), flush=True)
                if "ceilings" not in self.data:
                    raise Stopped(f"the ceilings cannot be measured: {row.reason}")
        finally:
            self._end_worker()

    def _filled(self, row: Row) -> Row:
        left = self.deadline - time.monotonic()
        if left < 1:
            return dataclasses.replace(row, status="skipped", reason="no time left")
        if given_up := self._given_up(row):
            return dataclasses.replace(row, status="skipped", reason=given_up)
        try:
            if self.worker is None:
                self.worker = Worker(self.device, self.small, self.data.get("ceilings"))
                self.data["ceilings"] = self.worker.answer(min(START, left))
                results.save(self.folder, self.data)
            answer = self.worker.ask(row, min(FOR_A_ROW[self.device], self.deadline - time.monotonic()))
        except Stopped as reason:
            self._end_worker()
            if time.monotonic() >= self.deadline - 0.5:
                return dataclasses.replace(row, status="skipped", reason="no time left")
            self._count(row, str(reason), LOST_IN_A_GROUP if isinstance(reason, NoAnswer) else 1)
            return dataclasses.replace(row, status="failed", reason=str(reason))
        fit = answer.pop("fit")
        row = Row(**answer)
        if not fit:
            self._end_worker()
            self._count(row, row.reason)
        return row

    def _count(self, row: Row, reason: str, times: int = 1) -> None:
        # A peer needs no second try: what compiles for minutes, or cannot be recorded in a graph, does so again.
        self.lost[row.arm, row.group] += LOST_IN_A_GROUP if row.arm in PEERS else times
        self.why[row.arm] = reason

    def _given_up(self, row: Row) -> str | None:
        in_all = sum(count for (arm, _), count in self.lost.items() if arm == row.arm)
        if self.lost[row.arm, row.group] < LOST_IN_A_GROUP and in_all < LOST_IN_ALL:
            return None
        return f"not tried again: {self.why[row.arm]}"

    def _end_worker(self) -> None:
        if self.worker is not None:
            self.worker.end()
            self.worker = None
