"""Measures the rows of plan.py: `python benchmarks/gpu/run.py --output FOLDER [--seconds 240] [--groups decode,route]`.

Each row is in FOLDER/gpu.json as soon as it is measured; the table gpu.md and the figure gpu.png follow at the end, or
when the run is stopped. Exit status: 0; 1 if a row of ours is wrong or failed; 2 without such a device; 3 if stopped.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402

from gpu import plan, results, summary  # noqa: E402
from gpu.arms import PEERS  # noqa: E402
from gpu.dispatch import Dispatch, Stopped  # noqa: E402

# Seconds that are left for the table and the figure.
AT_THE_END = 8.0
PACKAGES = ("torch", "triton", "transformers", "scattermoe", "liger-kernel", "sonic-moe", "vllm", "moe-kernels")


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
        Dispatch(data, options.output, options.device, options.small, deadline).measure(todo)
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
