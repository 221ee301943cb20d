"""Measures the rows of plan.py: `python benchmarks/gpu/run.py --output FOLDER [--seconds 240] [--groups decode,route]`.

Each row is in FOLDER/gpu.json as soon as it is measured; the table gpu.md and the figure gpu.png follow at the end, or
when the run is stopped. Exit status: 0; 1 if a row of ours is wrong or failed; 2 without such a device; 3 if stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import platform
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402

from gpu import plan, results, summary  # noqa: E402
from gpu.arms import PEERS  # noqa: E402
from gpu.results import Row  # noqa: E402

# Seconds: for a worker to start and measure the ceilings, for a row, and what is left for the table and the figure.
START, FOR_A_ROW, AT_THE_END = 90.0, 45.0, 8.0
WORKER = Path(__file__).with_name("worker.py")
PACKAGES = ("torch", "triton", "transformers", "scattermoe", "liger-kernel", "sonic-moe", "vllm", "moe-kernels")


class Stopped(Exception):
    """A worker did not answer in time, or ended."""


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
            Stopped: none within `limit` seconds, or the process is gone.
        """
        try:
            line = self.answers.get(timeout=max(0.1, limit))
        except queue.Empty:
            raise Stopped(f"no answer within {limit:.0f} s") from None
        if line is None:
            code = self.process.wait()
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            raise Stopped(f"the process ended: {name}")
        return json.loads(line)

    def ask(self, row: Row, limit: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(dataclasses.asdict(row)) + "\n")
        except BrokenPipeError:
            pass
        return self.answer(limit)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def describe(device: str) -> dict[str, Any]:
    """Return what the results say of the machine."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name, versions["cuda"] = properties.name, str(torch.version.cuda)
        memory = f"{properties.total_memory / 2**30:.0f} GiB, {properties.multi_processor_count} multiprocessors"
    else:
        from report import processor

        name, memory = f"{processor()}, {torch.get_num_threads()} threads", "a CPU: only to try the harness"
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"device": name, "about": memory, "date": now, "versions": versions}


def earlier(folder: Path) -> dict[str, Any]:
    """Return what the folder has, without its ceilings, and without rows of another device or of small sizes."""
    data = results.load(folder)
    now = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if data.get("small") or data.get("device") != now:
        data["rows"] = []
    data.pop("ceilings", None)
    data["unavailable"] = {}
    return data


def measure_rows(
    data: dict[str, Any], folder: Path, device: str, small: bool, todo: list[Row], deadline: float
) -> None:
    """Fill in the rows, one worker after another, and keep each in the file at once."""
    worker: Worker | None = None
    try:
        for row in todo:
            if row.arm in data["unavailable"]:
                continue
            left = deadline - time.monotonic()
            if left < 1:
                row.status, row.reason = "skipped", "no time left"
            else:
                try:
                    if worker is None:
                        worker = Worker(device, small, data.get("ceilings"))
                        data["ceilings"] = worker.answer(min(START, left))
                        results.save(folder, data)
                    begin = time.monotonic()
                    answer = worker.ask(row, min(FOR_A_ROW, deadline - begin))
                    fit = answer.pop("fit")
                    row = Row(**answer)
                except Stopped as reason:
                    row.status, row.reason, fit = "failed", str(reason), False
                    if time.monotonic() >= deadline - 0.5:
                        row.status, row.reason = "skipped", "no time left"
                    elif row.arm in PEERS:
                        # Once is enough: a library that compiles for minutes does so for the next shape again.
                        data["unavailable"][row.arm] = f"{row.group}, {row.case}: {reason}"
                if not fit and worker is not None:
                    worker.end()
                    worker = None
            if row.arm in PEERS and row.reason.startswith(results.NOT_IMPORTABLE):
                data["unavailable"][row.arm] = row.reason
                continue
            results.keep(data, row)
            results.save(folder, data)
            took = f"{row.seconds * 1e3:.4g} ms" if row.seconds else ""
            print(
                f"{row.group}, {row.case}, T={row.T}, {row.arm}: {row.status} {row.reason} {took}".rstrip(), flush=True
            )
            if "ceilings" not in data:
                raise Stopped("the ceilings cannot be measured: " + row.reason)
    finally:
        if worker is not None:
            worker.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for gpu.json, gpu.md, gpu.png")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try the harness")
    parser.add_argument("--seconds", type=float, default=300, help="of the whole run, default 300")
    parser.add_argument("--groups", help=f"some of {', '.join(plan.GROUPS)}")
    parser.add_argument("--cases", help="some of the shapes")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds - AT_THE_END
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing is measured", file=sys.stderr)
        return 2
    todo = plan.rows(torch.device(options.device), options.small)
    for wanted, of in ((options.groups, "group"), (options.cases, "case")):
        if wanted:
            todo = [row for row in todo if getattr(row, of) in wanted.split(",")]
    data = earlier(options.output) | describe(options.device) | {"small": options.small}

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    status = 0
    try:
        measure_rows(data, options.output, options.device, options.small, todo, deadline)
    except KeyboardInterrupt:
        # Whoever sends the signal may send it to the group as well.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        print("stopped: what was measured is kept", file=sys.stderr)
        status = 3
    except Stopped as reason:
        print(reason, file=sys.stderr)
        status = 1
    results.save(options.output, data)
    summary.write(options.output, data)
    bad = [row for row in results.rows_of(data) if row.status in ("wrong", "failed") and row.arm not in PEERS]
    return status or int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
