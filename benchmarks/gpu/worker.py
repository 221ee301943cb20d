"""Measures rows in a process of its own: `run.py` sends one as a line of JSON, and gets it back filled in.

A kernel that hangs, or that leaves the CUDA context unusable, takes this process with it and no other row.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from peers import Unavailable  # noqa: E402

from gpu import decode  # noqa: E402
from gpu.ceilings import Ceilings, measure_ceilings  # noqa: E402
from gpu.check import Wrong  # noqa: E402
from gpu.context import Context  # noqa: E402
from gpu.plan import GROUPS  # noqa: E402
from gpu.results import NOT_IMPORTABLE, Row  # noqa: E402
from gpu.timing import CaptureFailed, Skip, synchronize, usable  # noqa: E402
from moe_kernels import BackendUnavailable  # noqa: E402

LAST_WORDS = 400


def _message(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join([f"{type(error).__name__}:", *lines])[:LAST_WORDS]


def fill(context: Context, row: Row) -> bool:
    """Measure a row, or say in it why not; return whether this process is still fit for others."""
    try:
        GROUPS[row.group](context, row)
        synchronize(context.device)
        return True
    except ImportError as error:
        row.status, row.reason = "skipped", f"{NOT_IMPORTABLE}{str(error).strip()[:LAST_WORDS]}"
        return True
    except (Skip, Unavailable, BackendUnavailable) as error:
        row.status, row.reason = "skipped", str(error).strip()[:LAST_WORDS] or type(error).__name__
        return not isinstance(error, CaptureFailed)
    except Wrong as error:
        row.status, row.reason = "wrong", str(error)[:LAST_WORDS]
        return True
    except Exception as error:
        # An arm may raise anything; the row says what.
        row.status, row.reason = "failed", _message(error)
        return usable(context.device)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--ceilings", help="as JSON; without it they are measured and sent back first")
    options = parser.parse_args()
    # Libraries print to the standard output: it is kept for the rows, and theirs goes to the errors.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    device = torch.device(options.device)

    def answer(data: object) -> None:
        answers.write(json.dumps(data) + "\n")
        answers.flush()

    if options.ceilings:
        ceilings = Ceilings(**json.loads(options.ceilings))
    else:
        ceilings = measure_ceilings(device, options.small)
    answer(ceilings._asdict())
    context, group = Context(device, ceilings, options.small), ""
    for line in sys.stdin:
        row = Row(**json.loads(line))
        if row.group != group:
            decode.forget()
            group = row.group
        fit = fill(context, row)
        if fit and device.type == "cuda":
            # What a cycle holds, the next row's layer may need.
            gc.collect()
            torch.cuda.empty_cache()
        answer(dataclasses.asdict(row) | {"fit": fit})
        if not fit:
            # Not by the interpreter's way out: destructors would touch a broken context.
            os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
