"""Expert parallelism: measured time beside the time that the cost model of docs/scaling.md gives.

`python benchmarks/expert_parallel.py --ranks 2 4` starts processes on this machine; under torchrun it is one rank of
those that torchrun starts, on any number of nodes. The model's inputs (latency and bandwidth of the all-to-all, rates
of the grouped product and of copying, time of the layer without tokens) are measured in the same processes, in turn
with what the model is to predict.

Letters: W ranks; of one rank T tokens, N = T·K rows sent, M rows received; E experts of all, H hidden, I intermediate.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from moe_kernels import MoELayer, grouped_mm

TINY = 8
# Terms of the model.
PARTS = ("host", "counts", "exchanges", "experts", "rows")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], help="numbers of processes to start")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128, 512], help="T of each rank")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--intermediate", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    return parser.parse_args()


class Rank:
    """What one process measures; every rank calls every method together."""

    def __init__(self, options: argparse.Namespace, T: int) -> None:
        self.T, self.E, self.K = T, options.experts, options.top_k
        self.H, self.I, self.rounds = options.hidden, options.intermediate, options.rounds
        self.dtype = getattr(torch, options.dtype)
        self.W = dist.get_world_size()
        local = torch.cuda.is_available() and dist.get_backend() == "nccl"
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if local else torch.device("cpu")
        torch.manual_seed(0)
        self.layer = MoELayer(
            self.H,
            self.I,
            self.E,
            self.K,
            process_group=dist.group.WORLD,
            dtype=self.dtype,
            device=self.device,
        )
        torch.manual_seed(dist.get_rank())
        self.x = torch.randn(T, self.H, dtype=self.dtype, device=self.device, requires_grad=True)
        with torch.no_grad():
            owner = self.layer.route(self.x)[1].indices // max(1, self.E // self.W)
        self.sent = torch.bincount(owner.flatten().long().clamp(max=self.W - 1), minlength=self.W)
        received = self.sent.clone()
        dist.all_to_all_single(received, self.sent)
        self.M = int(received.sum())
        # Rows to other ranks, of the rank that has most of them: the others wait for it.
        rows = torch.tensor([int(self.sent.sum() - self.sent[dist.get_rank()]), self.M])
        dist.all_reduce(rows, dist.ReduceOp.MAX)
        self.rows_away, self.most = rows.tolist()

    def seconds(self, call: Callable[[], object]) -> float:
        """Time from when the first rank may begin until the last is done, and a barrier.

        Without the barrier, a rank that waits for a core before it begins would not count its waiting.
        """
        dist.barrier()
        begin = time.perf_counter()
        call()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        dist.barrier()
        taken = torch.tensor(time.perf_counter() - begin)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        return float(taken)

    def measure(self) -> dict[str, float]:
        """Seconds of each arm in its fastest round: a machine that others use too disturbs most of them."""
        arms = self._arms()
        times: dict[str, list[float]] = {name: [] for name in arms}
        for number in range(self.rounds + 2):
            for name, call in arms.items():
                taken = self.seconds(call)
                # The first two rounds find memory and connections.
                if number >= 2:
                    times[name].append(taken)
        fastest = {name: min(values) for name, values in times.items()}
        return {name: max(value - fastest["nothing"], 1e-6) for name, value in fastest.items()}

    def _arms(self) -> dict[str, Callable[[], object]]:
        E_rank = self.layer.expert_shards.num_local
        w = self.layer.experts.gate_up_proj.detach()
        # The grouped product on as many rows as come to the busiest rank, spread evenly over the experts.
        offsets = torch.linspace(0, self.most, E_rank + 1, device=self.device).to(torch.int32)
        rows = torch.randn(self.most, self.H, dtype=self.dtype, device=self.device)
        leaf, weight = rows.clone().requires_grad_(), w.clone().requires_grad_()
        product = grouped_mm(leaf, weight, offsets)
        grad = torch.randn_like(product)
        part = self.rows_away // max(1, self.W - 1)
        whole = torch.randn(part * self.W, self.H, dtype=self.dtype, device=self.device)
        tiny = torch.zeros(self.W * TINY, dtype=torch.int64, device=self.device)
        target, small, copy = torch.empty_like(whole), torch.empty_like(tiny), torch.empty_like(rows)
        nothing = self.x.detach()[:0].requires_grad_()
        result: list[Tensor] = []
        # This rank's experts on rows that are here already: the part of the layer that the products' rates predict.
        local = torch.arange(E_rank, dtype=torch.int32, device=self.device)
        local = local.repeat_interleave(offsets.diff().long())[:, None]
        ones = torch.ones(self.most, 1, device=self.device)

        def forward(x: Tensor) -> None:
            with torch.no_grad():
                self.layer(x)

        def training(x: Tensor) -> None:
            self.layer.zero_grad(set_to_none=True)
            x.grad = None
            result[:] = [self.layer(x)]
            result[0].backward(result[0].detach())

        def experts() -> None:
            with torch.no_grad():
                self.layer.experts(rows, local, ones)

        def experts_training() -> None:
            self.layer.zero_grad(set_to_none=True)
            leaf.grad = None
            result[:] = [self.layer.experts(leaf, local, ones)]
            result[0].backward(result[0].detach())

        def backward_product() -> None:
            torch.autograd.grad(product, [leaf, weight], grad, retain_graph=True)

        return {
            "forward": lambda: forward(self.x),
            "training": lambda: training(self.x),
            "forward without tokens": lambda: forward(nothing),
            "training without tokens": lambda: training(nothing),
            "forward experts": experts,
            "training experts": experts_training,
            "nothing": lambda: None,
            "tiny": lambda: dist.all_to_all_single(small, tiny),
            "exchange": lambda: dist.all_to_all_single(target, whole),
            "product": lambda: grouped_mm(rows, w, offsets),
            "backward product": backward_product,
            "copy": lambda: copy.copy_(rows),
        }


def modelled(rank: Rank, times: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the model's inputs, and the seconds that it gives; docs/scaling.md has the formulas."""
    s = rank.dtype.itemsize
    latency = times["tiny"]
    part = rank.rows_away // max(1, rank.W - 1) * (rank.W - 1)
    inputs = {
        "latency": latency,
        "bandwidth": part * rank.H * s / max(times["exchange"] - latency, 1e-9),
        "product": 4 * rank.most * rank.H * rank.I / times["product"],
        "backward product": 8 * rank.most * rank.H * rank.I / times["backward product"],
        "forward host": max(0.0, times["forward without tokens"] - 3 * latency),
        "training host": max(0.0, times["training without tokens"] - 5 * latency),
        "copy": 2 * rank.most * rank.H * s / times["copy"],
    }
    exchange = latency + rank.rows_away * rank.H * s / inputs["bandwidth"]
    work = 6 * rank.most * rank.H * rank.I
    # permute reads and writes N rows; unpermute reads them.
    rows = 3 * rank.T * rank.K * rank.H * s / inputs["copy"]
    forward = {
        "host": inputs["forward host"],
        "counts": latency,
        "exchanges": 2 * exchange,
        "experts": work / inputs["product"],
        "rows": rows,
    }
    training = {
        "host": inputs["training host"],
        "counts": latency,
        "exchanges": 4 * exchange,
        "experts": work / inputs["product"] + 2 * work / inputs["backward product"],
        # Backward of unpermute reads and writes rows, that of permute reads them.
        "rows": 2 * rows,
    }
    return inputs, {
        "forward": sum(forward.values()),
        "training": sum(training.values()),
        **{f"forward {name}": value for name, value in forward.items()},
        **{f"training {name}": value for name, value in training.items()},
    }


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    first = dist.get_rank() == 0
    for T in options.tokens:
        rank = Rank(options, T)
        times = rank.measure()
        inputs, model = modelled(rank, times)
        if not first:
            continue
        print(
            f"\nW={rank.W} E={rank.E} K={rank.K} H={rank.H} I={rank.I} T={T} a rank, {options.dtype}, "
            f"{dist.get_backend()}; rows received by the busiest rank: {rank.most} (N={T * rank.K})"
        )
        print(
            f"measured inputs, a rank: all-to-all {inputs['latency'] * 1e3:.3f} ms + "
            f"{inputs['bandwidth'] / 1e9:.2f} GB/s, "
            f"grouped product {inputs['product'] / 1e12:.3f}, its backward {inputs['backward product'] / 1e12:.3f} "
            f"TFLOP/s, copy {inputs['copy'] / 1e9:.1f} GB/s"
        )
        columns = ("pass", "measured ms", "modelled ms", "measured / modelled", *PARTS, "measured experts alone")
        print("| " + " | ".join(columns) + " |")
        print("|---" + "|---:" * (len(columns) - 1) + "|")
        for name in ("forward", "training"):
            parts = [f"{model[f'{name} {what}'] * 1e3:.2f}" for what in PARTS]
            ratio = times[name] / model[name]
            head = f"| {name} | {times[name] * 1e3:.2f} | {model[name] * 1e3:.2f} | {ratio:.2f} | "
            alone = times[f"{name} experts"] * 1e3
            print(head + " | ".join(parts) + f" | {alone:.2f} |", flush=True)


def _spawned(rank: int, size: int, store: str, options: argparse.Namespace) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    run(options)
    dist.destroy_process_group()


def main() -> None:
    options = arguments()
    if "RANK" in os.environ:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(backend)
        run(options)
        dist.destroy_process_group()
        return
    for size in options.ranks:
        with tempfile.TemporaryDirectory() as folder:
            spawn: Any = torch.multiprocessing.spawn
            spawn(_spawned, (size, os.path.join(folder, "store"), options), nprocs=size)


if __name__ == "__main__":
    main()
