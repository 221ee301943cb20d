"""A token of a layer whose experts lie in pinned host memory, with slots on the GPU for a part of them.

What `specmoe.offload` does above its reads from disk: experts that a token needs and that are not on the device are
copied into slots by a stream of their own, and computed from there.

Letters: E experts, K experts per token, H hidden.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gpu import shapes
from gpu.check import check_forward
from gpu.context import Context
from gpu.results import Row
from gpu.timing import Measured, measure
from moe_kernels import fused_experts

if TYPE_CHECKING:
    from specmoe.offload.tiers import DeviceTier

# Tokens that follow each other, again and again: from the second time on, the same ones miss each time.
TOKENS = 64
# How likely a token takes an expert that the one before had; where all are alike, a cache has nothing to go by.
AGAIN = 0.5
# Bytes of the copy from pinned memory that shows what the link does.
LINK_BYTES = 2**28


def routes(E: int, K: int) -> np.ndarray:
    """Draw the experts of every token, (TOKENS, K)."""
    random = np.random.default_rng(6)
    found = [random.permutation(E)[:K]]
    while len(found) < TOKENS:
        kept = found[-1][random.random(K) < AGAIN]
        others = random.permutation(np.setdiff1d(np.arange(E), kept))
        found.append(np.concatenate([kept, others[: K - len(kept)]]))
    return np.stack(found)


@contextmanager
def _tier(gate_up: Tensor, down: Tensor, slots: int) -> Iterator[tuple[DeviceTier, dict[int, int]]]:
    """Put the experts of a layer into host memory; yield the slots on the device above it and the host's by expert."""
    # Here and not above: no other row needs it.
    from specmoe.offload import ExpertKey, ExpertStore, HostTier
    from specmoe.offload.tiers import DeviceTier

    keys = [ExpertKey(0, e) for e in range(len(down))]
    with tempfile.TemporaryDirectory() as folder:
        experts = {0: {"gate_up_proj": gate_up.cpu(), "down_proj": down.cpu()}}
        store = ExpertStore.build(experts, Path(folder, "experts.store"))
        with store, HostTier(store, len(keys)) as host:
            host.demand(keys)
            where = {key.expert: slot for key, slot in zip(keys, host.wait(keys), strict=True)}
            tier = DeviceTier(host, slots, gate_up.device)
            try:
                yield tier, where
            finally:
                tier.close()


def _link(device: torch.device) -> float:
    """Return bytes a second of a large copy from pinned host memory."""
    source = torch.empty(LINK_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(LINK_BYTES, dtype=torch.uint8, device=device)
    return LINK_BYTES / measure(lambda: target.copy_(source, non_blocking=True), device, cold=False).seconds


def offload(context: Context, row: Row) -> None:
    """Mean over 64 tokens; the floor is that of copying those experts that miss, `case` ends with the share of slots.

    `ratio` is the time of copying every expert of every token, over that with the slots kept.
    """
    name, _, share = row.case.partition(" ")
    shape, device = context.models[name], context.device
    row.sizes = shape._asdict()
    gate_up, down = shapes.weights(shape, device)
    chosen = routes(shape.E, shape.K)
    token = shapes.tokens(shape, 1, device)
    with torch.no_grad(), _tier(gate_up, down, shape.E * int(share.removesuffix("%")) // 100) as (tier, where):
        slots = tier.pool.tensors

        def step(experts: np.ndarray) -> Tensor:
            brought = tier.bring(0, experts.tolist(), where)
            indices = torch.tensor([brought], dtype=torch.int32).to(device, non_blocking=True)
            weights = slots["gate_up_proj"], slots["down_proj"]
            out = fused_experts(token.x, indices, token.routing, *weights, backend=row.arm)
            tier.used(brought)
            return out

        def replay(keep: bool) -> None:
            for experts in chosen:
                if not keep:
                    tier.reset()
                step(experts)
            tier.copied()

        for experts in chosen[:2]:
            indices = torch.from_numpy(experts[None].astype(np.int32)).to(device)
            asked = shapes.as_tokens(token.x, indices, token.routing)
            row.error = max(row.error or 0.0, check_forward(step(experts), asked, gate_up, down, 1.0))
        replay(True)
        before = tier.copies
        replay(True)
        row.nbytes = (tier.copies - before) / TOKENS * tier.pool.blob_bytes
        kept, dropped = (measure(lambda k=keep: replay(k), device, cold=False) for keep in (True, False))
    row.operations = shape.operations(1)
    context.time(row, Measured(*(seconds / TOKENS for seconds in kept[:3]), kept.repeats, kept.first))
    row.floor, row.bound = row.nbytes / _link(device), "host link"
    row.ratio, row.ratio_of = dropped.seconds / kept.seconds, "times faster than without a cache"
