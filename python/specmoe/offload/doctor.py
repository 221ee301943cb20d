"""What to expect of a model, a machine and a budget, before anything is run for long.

Letters: L layers, E experts, K experts per token.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from moe_kernels import fused_experts

from .budget import fits_page_cache, format_bytes, free_memory
from .checkpoint import Checkpoint, ExpertSource
from .engine import load_without_experts, moe_blocks
from .store import DirectFile, ExpertKey, aligned_buffer, drop_cached_pages
from .store.layout import Checksum

# Loads that are timed, and layers' computes.
SAMPLE = 12
# Share of requests that a cache of LRU serves, by the share of experts that it holds: GPT-OSS-20B's routes, 8, 12 and
# 16 slots of 32 (66.0, 80.5, 89.6 %), and the ends, where nothing and everything is there.
LRU_HITS = ((0.0, 0.0), (0.25, 0.66), (0.375, 0.805), (0.5, 0.896), (1.0, 1.0))


@dataclass(frozen=True)
class Diagnosis:
    """What was measured and what follows.

    Args:
        expert_bytes: of one expert.
        experts: L·E.
        layers: L.
        top_k: K.
        load_seconds: to read and check one expert past the page cache.
        cached_seconds: to read and check one that the page cache holds.
        compute_seconds: of a layer's experts for one token.
        rest_seconds: of everything but experts for one token, after a short context.
        free_bytes: memory that is free for the page cache and slots; None where the system does not tell.
    """

    expert_bytes: int
    experts: int
    layers: int
    top_k: int
    load_seconds: float
    cached_seconds: float
    compute_seconds: float
    rest_seconds: float
    free_bytes: int | None

    @property
    def ratio(self) -> float:
        """Load over compute: where speculation can win most, misses times this is 1."""
        return self.load_seconds / self.compute_seconds

    def misses(self, budget: int) -> float:
        """Return how many experts a layer misses for a token, as far as other models' routes tell."""
        share = min(1.0, budget / (self.experts * self.expert_bytes))
        held, hit = zip(*LRU_HITS, strict=True)
        hits = float(np.interp(share, held, hit))
        return self.top_k * (1.0 - hits)

    def tokens_per_second(self, budget: int, cached: bool = False) -> tuple[float, float, float]:
        """Return the rates on demand, with a perfect guess one layer ahead, and with everything in memory.

        Args:
            budget: bytes of experts in memory.
            cached: loads are served by the page cache.
        """
        C, load = self.compute_seconds, self.cached_seconds if cached else self.load_seconds
        carried, rest = self.misses(budget) * load, self.rest_seconds / self.layers
        # Loads can hide behind attention too, not only behind experts.
        each = (rest + C + carried, max(rest + C, carried), rest + C)
        return tuple(1.0 / (self.layers * s) for s in each)  # type: ignore[return-value]

    def page_cache_wins(self, budget: int) -> bool:
        """Whether the free memory holds all experts beside the slots: `offload` then reads through the page cache."""
        whole = self.experts * self.expert_bytes
        return fits_page_cache(whole, budget, self.free_bytes) and self.cached_seconds < self.load_seconds

    def lines(self, budget: int) -> list[str]:
        """Return the diagnosis of a budget as sentences."""
        whole = self.experts * self.expert_bytes
        demand, ahead, resident = self.tokens_per_second(budget)
        out = [
            f"experts: {self.experts} of {format_bytes(self.expert_bytes)}, {format_bytes(whole)} in all; a token uses "
            f"{self.top_k} in each of {self.layers} layers",
            f"measured: {1e3 * self.load_seconds:.2f} ms to load an expert from disk "
            f"({self.expert_bytes / self.load_seconds / 1e9:.2f} GB/s), {1e3 * self.cached_seconds:.2f} ms from the "
            f"page cache, {1e3 * self.compute_seconds:.2f} ms to compute a layer's experts for a token (load/compute "
            f"{self.ratio:.2f}), {1e3 * self.rest_seconds:.1f} ms for the rest of the model",
            f"with {format_bytes(budget)}: about {demand:.2f} tokens/s on demand; at best {ahead:.2f} with perfect "
            f"guesses one layer ahead, {resident:.2f} with every expert in memory (a short context; misses by another "
            "model's routes)",
        ]
        carried = self.misses(budget) * self.ratio
        if carried < 0.1:
            out.append("loading is a small part of the time: speculation has little to win, and switches itself off")
        elif carried > 3.0:
            out.append(
                "loading is most of the time: guesses can win little; a larger budget, quantized experts (nf4 has less "
                "than a third of the bytes) or a faster disk help"
            )
        else:
            out.append(f"speculation can win up to {demand and ahead / demand - 1:.0%} here")
        target = next((b for b in np.linspace(0.05, 1.0, 20) if self.misses(int(b * whole)) * self.ratio <= 1.0), 1.0)
        if target * whole > budget:
            out.append(
                f"with {format_bytes(target * whole)}, loads would fit into the time of computing: about "
                f"{self.tokens_per_second(int(target * whole))[0]:.2f} tokens/s on demand"
            )
        if self.page_cache_wins(budget):
            out.append(
                f"memory is free for all experts: the page cache wins and is used; about "
                f"{self.tokens_per_second(budget, cached=True)[0]:.2f} tokens/s on demand once it holds the store (a "
                "budget of 100 % is better still)"
            )
        return out


def diagnose(model: str | Path, folder: str | Path) -> Diagnosis:
    """Measure a checkpoint's experts on this machine.

    Args:
        model: directory of the checkpoint.
        folder: where the store would be; a small temporary file is written there, and gone however this ends.

    Raises:
        CheckpointError: the checkpoint is damaged, or has no experts of a known kind.
    """
    checkpoint = Checkpoint(model)
    source = ExpertSource(checkpoint)
    tensors = source.expert(ExpertKey(0, 0))
    nbytes = sum(t.numel() * t.element_size() for t in tensors.values())
    load, cached = _loads(Path(folder), nbytes)
    config = checkpoint.config
    top_k = int(config.get("num_experts_per_tok") or config.get("moe_topk") or 1)
    return Diagnosis(
        nbytes,
        len(source.keys),
        len(source.groups),
        top_k,
        load,
        cached,
        _compute(tensors, top_k, source.transposed),
        _rest(model),
        free_memory(),
    )


def _loads(folder: Path, nbytes: int) -> tuple[float, float]:
    """Return the seconds to load one expert from the disk and from the page cache."""
    size = -(-nbytes // 4096) * 4096
    block = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    with _temporary_file(folder) as (file, path):
        for _ in range(SAMPLE):
            file.write(block.data)
        file.flush()
        drop_cached_pages(path)
        direct, buffered = DirectFile(path), DirectFile(path, direct=False)
        try:
            targets = [memoryview(aligned_buffer(size)) for _ in range(SAMPLE)]
            for target in targets:
                target[:] = block.data
            cold = _seconds(direct, targets, size)
            _seconds(buffered, targets, size)
            return cold, _seconds(buffered, targets, size)
        finally:
            direct.close()
            buffered.close()


@contextmanager
def _temporary_file(folder: Path) -> Iterator[tuple[IO[bytes], str]]:
    """Yield a file and a path to open it by; on Linux it has no name that a killed process could leave."""
    if sys.platform == "linux":
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file, f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(dir=folder) as named:
            yield named, named.name


def _seconds(file: DirectFile, targets: list[memoryview], size: int) -> float:
    """Return the median seconds to read and check one of the experts that lie in a file."""
    seconds = []
    for i, target in enumerate(targets):
        begin = time.perf_counter()
        file.read_into(i * size, target, Checksum().update)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))


class _NoExperts(torch.nn.Module):
    """Stands for experts that cost nothing."""

    def forward(self, x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.zeros_like(x)


def _rest(folder: str | Path) -> float:
    """Return the seconds of everything but the experts for one token."""
    model = load_without_experts(folder)
    for block in moe_blocks(model):
        block.moe.experts = _NoExperts()
    ids = torch.zeros(1, 2, dtype=torch.int64)
    stamps: list[float] = []

    class Stamps:
        def put(self, _: object) -> None:
            stamps.append(time.perf_counter())

        def end(self) -> None:
            pass

    options = {"max_new_tokens": SAMPLE, "min_new_tokens": SAMPLE, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), streamer=Stamps(), **options)
    return float(np.median(np.diff(stamps[2:])))


def _compute(tensors: dict[str, torch.Tensor], top_k: int, transposed: bool) -> float:
    """Return the seconds that the experts of a layer take for one token, from memory rather than from a cache."""
    up = next(tensors[name] for name in ("gate_up_proj", "up_proj") if name in tensors)
    down = tensors["down_proj"]
    copies = max(2 * top_k, min(64, -(-(256 << 20) // (up.nbytes + down.nbytes))))
    ups, downs = (w.to(torch.bfloat16).expand(copies, *w.shape).contiguous() for w in (up, down))
    x = torch.randn(1, ups.shape[1 if transposed else 2]).to(ups.dtype)
    weights = torch.full((1, top_k), 1.0 / top_k)
    seconds = []
    for step in range(SAMPLE):
        indices = (torch.arange(top_k)[None] + step * top_k) % copies
        begin = time.perf_counter()
        activation = "silu" if "gate_up_proj" in tensors else "relu"
        fused_experts(x, indices.int(), weights, ups, downs, activation=activation, transposed=transposed)
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds))
