"""Where the time of a prefill goes in bench_transformers' model, and how fast it could be at most on this processor.

`python benchmarks/transformers_prefill.py`: forward passes with our experts and with transformers' in turn, a clock
around each expert module; and, between them, the register loop that multiplies without memory. With the experts at the
rate of that loop and everything else as it is, no experts could make the model faster: the last line says by how much.

Wall-clock time on a machine that others use is theirs as well: there, run it with OMP_NUM_THREADS=1 and read the CPU
time, which is the process's own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from bench_transformers import LAYERS, THEIRS, make_model
from measure import product_rate

from moe_kernels.integrations.recognition import is_experts
from moe_kernels.native import core

CLOCKS = {"wall": time.perf_counter, "CPU": time.process_time}
OURS = "moe_kernels"


class Experts:
    """The seconds that a model's expert modules take, by each clock."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = dict.fromkeys(CLOCKS, 0.0)
        self.modules = [module for module in model.modules() if is_experts(module)]
        for module in self.modules:
            module.register_forward_pre_hook(lambda *_: self._add(-1))
            module.register_forward_hook(lambda *_: self._add(1))

    def _add(self, sign: int) -> None:
        for name, clock in CLOCKS.items():
            self.seconds[name] += sign * clock()


def timed(call: Callable[[], object], experts: Experts) -> dict[str, tuple[float, float]]:
    """Return, by clock, the seconds of a call and those of them that the experts take."""
    experts.seconds = dict.fromkeys(CLOCKS, 0.0)
    begin = {name: clock() for name, clock in CLOCKS.items()}
    call()
    return {name: (clock() - begin[name], experts.seconds[name]) for name, clock in CLOCKS.items()}


def loop_rates(threads: int) -> dict[str, float]:
    """Operations of the register loop per second, by clock; CPU seconds are those of all threads together."""
    begin = {name: clock() for name, clock in CLOCKS.items()}
    rate = core().product_rate(product_rate("bfloat16", threads).how, threads)
    spent = {name: clock() - begin[name] for name, clock in CLOCKS.items()}
    return {"wall": rate, "CPU": rate * spent["wall"] / spent["CPU"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--small", action="store_true", help="a small model, to try this program")
    options = parser.parse_args()

    model = make_model(options.small)
    experts = Experts(model)
    config, threads = model.config, torch.get_num_threads()
    ids = torch.randint(0, config.vocab_size, (1, options.tokens), generator=torch.Generator().manual_seed(1))
    found: dict[str, list[dict[str, tuple[float, float]]]] = {OURS: [], THEIRS: []}
    rates: list[dict[str, float]] = []
    with torch.inference_mode():
        # The first round finds memory.
        for number in range(options.rounds + 1):
            for name, rounds in found.items():
                model.set_experts_implementation(name)
                one = timed(lambda: model(ids, logits_to_keep=1), experts)
                if number:
                    rounds.append(one)
            rates.append(loop_rates(threads))

    print(
        f"{options.tokens} tokens, {LAYERS} layers, {threads} threads, medians of {options.rounds} rounds (fastest), ms"
    )
    print("| clock | experts | whole | experts alone | the rest |")
    print("|---|---|---:|---:|---:|")
    typical: dict[str, dict[str, tuple[float, float, float]]] = {}
    for clock in CLOCKS:
        typical[clock] = {}
        for name, rounds in found.items():
            parts = [(w := r[clock][0], e := r[clock][1], w - e) for r in rounds]
            columns = list(zip(*parts, strict=True))
            typical[clock][name] = tuple(map(statistics.median, columns))  # type: ignore[assignment]
            cells = (f"{statistics.median(c) * 1e3:.0f} ({min(c) * 1e3:.0f})" for c in columns)
            print(f"| {clock} | {name} | " + " | ".join(cells) + " |")

    rows = options.tokens * config.num_experts_per_tok
    operations = LAYERS * rows * 6 * config.hidden_size * config.moe_intermediate_size
    for clock, by_name in typical.items():
        # The rate is the processor's; disturbances are not.
        rate = max(r[clock] for r in rates)
        floor = operations / rate
        (_, alone, rest), theirs = by_name[OURS], by_name[THEIRS][0]
        print(
            f"{clock}: register loop {rate / 1e12:.3f} TFLOP/s, so that the experts need {floor * 1e3:.0f} ms; "
            f"they are at {floor / alone:.2f} of that. {theirs / by_name[OURS][0]:.2f}x as it is, "
            f"{theirs / (rest + floor):.2f}x with experts at the loop's rate and the rest as it is"
        )


if __name__ == "__main__":
    main()
