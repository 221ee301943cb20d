"""Alternate between the models of a family within a budget, and say what it took.

    python benchmarks/specialists_memory.py FOLDER [--memory 3GiB] [--rounds 2] [--tokens 2]

`benchmarks/random_specialists.py` makes such a family. Each round asks every model for some tokens, so that specialists
with bases of their own push each other out. Printed as JSON: the budget, what the process itself takes, every load with
its time, and the largest resident memory of the whole process (VmHWM), which the exit status compares with the budget.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from specmoe.lora.system import complete
from specmoe.offload import format_bytes
from specmoe.specialists.runtime import SpecialistRouter
from specmoe.specialists.runtime.memory import peak_memory, resident_memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", default="3GiB")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(0)
    loads = []
    with SpecialistRouter(options.folder, options.memory) as router:
        residents = router.residents
        for _ in range(options.rounds):
            for name in residents.members:
                started, cpu, before = time.perf_counter(), time.process_time(), residents.loads
                with residents.using([name]) as loaded:
                    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
                    after_load = peak_memory()
                    turns = [{"role": "user", "content": "Convert to LC-R: [1]"}]
                    said = time.perf_counter()
                    complete(loaded.base, [turns], options.tokens, min_new_tokens=options.tokens)
                    said = time.perf_counter() - said
                told = {"model": name, "loaded": residents.loads > before, "load_s": round(seconds, 2)}
                told |= {"load_cpu_s": round(cpu_seconds, 2), "answer_s": round(said, 2)}
                told |= {"peak_after_load": format_bytes(after_load), "peak": format_bytes(peak_memory())}
                told |= {"resident": format_bytes(resident_memory()), "in_memory": list(residents.names)}
                loads.append(told)
                print(json.dumps(told), file=sys.stderr, flush=True)
        models = max(residents.bytes_of(["coordinator", name]) for name in residents.members)
        report = {
            "budget": format_bytes(router.memory),
            "process_and_working": format_bytes(router.reserve),
            "models_at_once": format_bytes(models),
            "peak": format_bytes(peak_memory()),
            "within_budget": peak_memory() <= router.memory,
            "turns": loads,
        }
    print(json.dumps(report, indent=1))
    return 0 if report["within_budget"] else 1


if __name__ == "__main__":
    sys.exit(main())
