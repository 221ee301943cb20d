"""One rank: joins a gloo group and runs the checks that it reads from stdin, a line of JSON each."""

from __future__ import annotations

import json
import os
import sys
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist


def main() -> None:
    rank, size, store, seconds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    timeout = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout)
    groups = {n: dist.new_group(list(range(n)), timeout=timeout) for n in range(1, size + 1)}
    sys.path.insert(0, os.path.dirname(__file__))
    import checks
    import transformers_checks

    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            check = getattr(checks, request["check"], None) or getattr(transformers_checks, request["check"])
            check(groups[request["size"]], **request["arguments"])
            error = ""
        except BaseException:
            error = traceback.format_exc()
        print(json.dumps(error), file=answers, flush=True)


if __name__ == "__main__":
    main()
