"""The arms on recorded routes with experts of a real model's size: real reads, real expert kernels, random weights.

There is no attention and no router: what is timed is the experts and their transfers.

Letters: L layers, E experts, K experts per token, H hidden, I intermediate, N tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moe_kernels import fused_experts
from specmoe.speculation import CostGate, LinkCounts, Oracle, Predictor, PreviousToken, RouteTrace

from ..budget import format_bytes, free_memory
from ..engine import ExpertPipeline
from ..store import ExpertKey, ExpertStore, StoreError, build_store, drop_cached_pages
from ..tiers import HostTier
from .arms import ARMS, Arm, ArmResult, CacheMeter, interleaved
from .mapped import MappedFile
from .policies import policy_of

# (model, H, I) of published models' experts, gated, smallest first.
SHAPES = (
    ("Qwen3-30B-A3B", 2048, 768),
    ("OLMoE-1B-7B", 2048, 1024),
    ("DeepSeek-V2-Lite", 2048, 1408),
    ("MiniMax-M2", 3072, 1536),
    ("Qwen3-235B-A22B", 4096, 1536),
    ("GPT-OSS-20B", 2880, 2880),
    ("Phi-3.5-MoE", 4096, 6400),
    ("Mixtral-8x7B", 4096, 14336),
)
DTYPE = torch.bfloat16
# A round's first tokens fill the empty cache and are not counted.
WARM_TOKENS = 8


@dataclass(frozen=True)
class Replay:
    """What is replayed: a trace's layers with experts of a real size.

    Args:
        model: whose experts' size it is.
        hidden_size: H.
        intermediate_size: I.
        first_layer: the first of the trace's layers that is replayed.
        layers: L, how many are.
        num_experts: E.
        top_k: K.
    """

    model: str
    hidden_size: int
    intermediate_size: int
    first_layer: int
    layers: int
    num_experts: int
    top_k: int

    @property
    def expert_bytes(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size * DTYPE.itemsize

    @property
    def total_bytes(self) -> int:
        return self.layers * self.num_experts * self.expert_bytes


def shape_for(trace: RouteTrace, size: int) -> Replay:
    """Choose the largest real expert with which all of the trace's layers fit into `size` bytes.

    Where not even the smallest does, layers are left out at both ends.

    Raises:
        ValueError: two layers of the smallest expert do not fit.
    """
    _, L, K = trace.experts.shape
    E = trace.num_experts

    def plan(shape: tuple[str, int, int], layers: int) -> Replay:
        return Replay(*shape, first_layer=(L - layers) // 2, layers=layers, num_experts=E, top_k=K)

    fitting = [plan(shape, L) for shape in SHAPES if plan(shape, L).total_bytes <= size]
    if fitting:
        return fitting[-1]
    smallest = plan(SHAPES[0], 1)
    layers = size // smallest.total_bytes
    if layers < 2:
        raise ValueError(
            f"replay: size: expected at least {format_bytes(2 * smallest.total_bytes)} for two layers of {E} experts "
            f"of {smallest.model}'s size, got {format_bytes(size)}"
        )
    return plan(SHAPES[0], layers)


def replay_store(
    replay: Replay, folder: Path, progress: Callable[[int, int], None] | None = None
) -> tuple[ExpertStore, bool]:
    """Open the store of random experts for a replay, or write it; return it and whether it was there."""
    H, I = replay.hidden_size, replay.intermediate_size
    path = folder / f"replay-{replay.layers}x{replay.num_experts}-{H}x{I}.store"
    keys = [ExpertKey(layer, e) for layer in range(replay.layers) for e in range(replay.num_experts)]
    if path.exists():
        try:
            store = ExpertStore.open(path)
        except StoreError:
            path.unlink()
        else:
            if store.layout.keys == keys:
                return store, True
            store.close()

    def draw(key: ExpertKey) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(key.layer * replay.num_experts + key.expert)
        gate_up = torch.empty(2 * I, H, dtype=DTYPE).normal_(std=H**-0.5, generator=generator)
        down = torch.empty(H, I, dtype=DTYPE).normal_(std=I**-0.5, generator=generator)
        return {"gate_up_proj": gate_up, "down_proj": down}

    folder.mkdir(parents=True, exist_ok=True)
    build_store(path, keys, draw, source=f"random experts of {replay.model}'s size", progress=progress)
    return ExpertStore.open(path), False


def seconds_per_load(store: ExpertStore, sample: int = 12) -> float:
    """Measure how long one expert takes to read, one after the other."""
    keys = store.layout.keys
    chosen = [keys[i] for i in np.random.default_rng(0).choice(len(keys), min(sample, len(keys)), replace=False)]
    begin = time.perf_counter()
    for key in chosen:
        store.read(key)
    return (time.perf_counter() - begin) / len(chosen)


def arms_that_fit(store: ExpertStore) -> Sequence[Arm]:
    """Return all arms, without the resident one where the experts would not fit into the memory that is free."""
    free = free_memory()
    return [arm for arm in ARMS if not arm.resident or free is None or store.layout.expert_bytes < 0.8 * free]


def run_replay_arms(
    replay: Replay,
    store: ExpertStore,
    slots: int,
    known: RouteTrace,
    rounds: Sequence[np.ndarray],
    *,
    arms: Sequence[Arm] = ARMS,
    progress: Callable[[str], None] | None = None,
    predictor: Callable[[RouteTrace], Predictor] = LinkCounts,
) -> list[ArmResult]:
    """Drive the store by recorded routes with every arm, a cold cache each time.

    Args:
        replay: the sizes.
        store: its experts.
        slots: how many of them fit in memory.
        known: routes for the predictor to learn from, of other sequences than those of `rounds`.
        rounds: routes (N, L, K), the same for all arms.
        arms: the arms to run; the first is what the others' outputs are compared with.
        progress: called with the arm's name before each run.
        predictor: makes from `known` what the arms that predict ask.
    """
    results = {arm.name: ArmResult(arm) for arm in arms}
    E = replay.num_experts
    expected: dict[int, Tensor] = {}
    counts = predictor(known)
    mapped = MappedFile(store.path) if any(arm.mapped for arm in arms) else None
    read_into, file = store.file.read_into, store.file
    everything = [arm for arm in arms if arm.resident]
    others = [arm for arm in arms if not arm.resident]
    # The resident arm needs another tier, as large as the store: it runs first and gives its memory back.
    for group, size in ((everything, len(store.layout.blobs)), (others, slots)):
        if not group:
            continue
        with HostTier(store, size) as tier:
            if group is everything:
                tier.demand(store.layout.keys)
                tier.wait(store.layout.keys)
                tier.release(store.layout.keys)
            for number, arm in interleaved(group, len(rounds)):
                if progress is not None:
                    progress(arm.name)
                if not arm.resident:
                    tier.reset(keep=arm.keep, policy=policy_of(arm, known, size))
                    if arm.mapped and mapped is not None:
                        mapped.forget()
                    elif store.file.mode != "direct":
                        drop_cached_pages(store.path)
                try:
                    if arm.mapped and mapped is not None:
                        file.read_into = mapped.read_into  # type: ignore[method-assign]
                    outputs = _measure(
                        results[arm.name], replay, tier, _predictor(arm, counts, rounds[number], E), rounds[number]
                    )
                finally:
                    file.read_into = read_into  # type: ignore[method-assign]
                results[arm.name].equal &= torch.equal(outputs, expected.setdefault(number, outputs))
    return list(results.values())


def _predictor(arm: Arm, counts: Predictor, routes: np.ndarray, num_experts: int) -> Predictor | None:
    if arm.guess == "oracle":
        return Oracle([[layer[None] for layer in token] for token in routes], num_experts)
    if arm.guess == "predicted":
        counts.reset()
        return counts
    if arm.guess == "previous_token":
        _, L, K = routes.shape
        return PreviousToken(L, num_experts, K)
    return None


def _measure(
    result: ArmResult, replay: Replay, tier: HostTier, predictor: Predictor | None, routes: np.ndarray
) -> Tensor:
    """Run one round, note what it measured after its first tokens, and return its outputs."""
    gate = CostGate(enabled=result.arm.gated)
    pipeline = ExpertPipeline(tier, replay.layers, predictor=predictor, gate=gate)
    warm = min(WARM_TOKENS, len(routes) // 2)
    x = torch.randn(len(routes), replay.hidden_size, generator=torch.Generator().manual_seed(0)).to(DTYPE)
    outputs = torch.empty(len(routes), replay.layers, replay.hidden_size, dtype=DTYPE)
    _drive(replay, tier, pipeline, routes[:warm], x[:warm], outputs[:warm])
    earlier = tier.stats.copy()
    mode = "memory map" if result.arm.mapped else tier.store.file.mode
    meter, begin = CacheMeter(mode), time.perf_counter()
    result.latencies += _drive(replay, tier, pipeline, routes[warm:], x[warm:], outputs[warm:])
    seconds = time.perf_counter() - begin
    stats = tier.settle().since(earlier)
    cached = meter.served(stats.loads * tier.store.layout.stored_bytes)
    result.add(len(routes) - warm, seconds, stats, True, cached)
    return outputs


@torch.no_grad()
def _drive(
    replay: Replay, tier: HostTier, pipeline: ExpertPipeline, routes: np.ndarray, x: Tensor, outputs: Tensor
) -> list[float]:
    """Run every token (N, H) through every layer's experts, into outputs (N, L, H); return each one's seconds."""
    weights = torch.full((1, replay.top_k), 1.0 / replay.top_k)
    gate_up, down = tier.pool.tensors["gate_up_proj"], tier.pool.tensors["down_proj"]
    seconds = []
    for token, by_layer in enumerate(routes.astype(np.int64)):
        begin = time.perf_counter()
        for layer, experts in enumerate(by_layer):
            wanted = experts.tolist()
            slots = pipeline.acquire(layer, wanted, experts[None])
            indices = torch.tensor([slots], dtype=torch.int32)
            outputs[token, layer] = fused_experts(x[token : token + 1], indices, weights, gate_up, down)[0]
            pipeline.release(layer, wanted)
        seconds.append(time.perf_counter() - begin)
    return seconds
