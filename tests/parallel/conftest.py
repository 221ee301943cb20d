"""Processes that are the ranks of a group: started once, for all tests here."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


class Ranks:
    """Processes of a gloo group (see worker.py).

    Args:
        size: how many.
        timeout: the group's, in seconds.
    """

    def __init__(self, size: int, timeout: float = 60.0) -> None:
        self.size, self.timeout = size, timeout
        self.folder = tempfile.TemporaryDirectory()
        self.processes: list[subprocess.Popen[str]] = []

    def start(self) -> Ranks:
        worker, store = Path(__file__).with_name("worker.py"), Path(self.folder.name) / f"store{time.monotonic_ns()}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if sys.platform == "linux":
            # Else gloo looks for an interface by the name of the host, which need not resolve.
            environment["GLOO_SOCKET_IFNAME"] = "lo"
        for rank in range(self.size):
            command = [sys.executable, str(worker), str(rank), str(self.size), str(store), str(self.timeout)]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.processes.append(subprocess.Popen(command, env=environment, **pipes))
        for rank, answer in enumerate(self.answers(range(self.size), 300)):
            assert answer == "ready", f"rank {rank} did not start"
        return self

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        self.processes.clear()

    def ask(self, ranks: range, check: str, size: int, **arguments: Any) -> None:
        for rank in ranks:
            line = json.dumps({"check": check, "size": size, "arguments": arguments})
            stdin = self.processes[rank].stdin
            assert stdin is not None
            stdin.write(line + "\n")
            stdin.flush()

    def answers(self, ranks: range, seconds: float) -> list[str | None]:
        """Read a line from each; an empty one from a rank that is gone, None from one that did not answer in time."""
        found: dict[int, str] = {}
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            for rank in ranks:
                selector.register(self.processes[rank].stdout, selectors.EVENT_READ, rank)  # type: ignore[arg-type]
            while len(found) < len(ranks) and time.monotonic() < end:
                for key, _ in selector.select(max(0.0, end - time.monotonic())):
                    found[key.data] = key.fileobj.readline().strip()  # type: ignore[union-attr]
                    selector.unregister(key.fileobj)
        return [found.get(rank) for rank in ranks]

    def run(self, check: str, size: int | None = None, **arguments: Any) -> None:
        """Run a function of checks.py on the first `size` ranks; fail with the message of each that failed."""
        ranks = range(size or self.size)
        if not self.processes:
            self.start()
        self.ask(ranks, check, len(ranks), **arguments)
        answers = self.answers(ranks, 3 * self.timeout)
        problems = [
            f"rank {rank}: " + ("no answer" if not answer else json.loads(answer))
            for rank, answer in enumerate(answers)
            if not answer or json.loads(answer)
        ]
        if problems:
            # A collective that one rank left unfinished leaves the group unusable.
            self.stop()
            pytest.fail("\n".join(problems))


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    if not torch.distributed.is_available():
        pytest.skip("torch without torch.distributed")
    pool = Ranks(4)
    yield pool
    pool.stop()


@pytest.fixture
def other_ranks() -> Iterator[Callable[[int, float], Ranks]]:
    """Make ranks of one's own, to be lost: called with their number and the group's timeout in seconds."""
    pools: list[Ranks] = []

    def make(size: int, timeout: float) -> Ranks:
        pools.append(Ranks(size, timeout))
        return pools[-1].start()

    yield make
    for pool in pools:
        pool.stop()
