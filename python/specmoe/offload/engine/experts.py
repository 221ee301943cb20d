"""The module that stands where a block's experts were.

Letters: T tokens, E experts, K experts per token, H hidden, S slots.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ..tiers import DeviceTier, HostTier
from .adapters import MoEBlock
from .grouping import plan_groups
from .pipeline import ExpertPipeline
from .runners import Run, chosen_experts, runner


class OffloadedExperts(nn.Module):
    """Calls the original experts module on slots in place of experts: same code, same bits.

    Args:
        block: whose experts they are.
        original: the block's experts module; its parameters' memory is given up by whoever offloads.
        tier: where the slots are.
        device: slots on a device above them, where the experts are then computed.
    """

    original: nn.Module
    _run_on_slots: Run
    _run_on_host: Run | None

    def __init__(self, block: MoEBlock, original: nn.Module, tier: HostTier, device: DeviceTier | None = None) -> None:
        super().__init__()
        self.layer = block.layer
        self.num_experts = block.num_experts
        self.kind = block.kind
        self.tier = tier
        self.pipeline: ExpertPipeline | None = None
        # Neither is a submodule: their weights are not this model's to save, move or train.
        self.__dict__["original"] = original
        self.device_tier = device
        pool, quantization = tier.pool if device is None else device.pool, tier.store.layout.quantization
        self.__dict__["_run_on_slots"] = runner(block.kind, original, pool, quantization)
        self.__dict__["_run_on_host"] = (
            None if device is None else runner(block.kind, original, tier.pool, quantization)
        )

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """Return (T, H) for x (T, H), indices (T, K) and weights (T, K), as the original would.

        Raises:
            RuntimeError: gradients are wanted, or the offload was closed.
            specmoe.offload.StoreError: an expert could not be read.
        """
        if torch.is_grad_enabled() and (x.requires_grad or weights.requires_grad):
            raise RuntimeError("offloaded experts give no gradients: call the model under torch.no_grad()")
        if self.pipeline is None:
            raise RuntimeError("offloaded experts: the offload was closed; load the model again")
        with torch.no_grad():
            return self._run(self.pipeline, x, indices, weights)

    def _run(self, pipeline: ExpertPipeline, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        experts = chosen_experts(self.kind, indices, self.num_experts)
        groups = plan_groups(
            experts,
            self.num_experts,
            self.tier.slots if self.device_tier is None else min(self.tier.slots, self.device_tier.slots),
            lambda: self.tier.resident_experts(self.layer, self.num_experts),
        )
        given = routing_weights(weights, experts) if pipeline.watching else None
        out = None if len(groups) == 1 else torch.empty_like(x)
        for number, (tokens, wanted) in enumerate(groups):
            last = number == len(groups) - 1
            # What the device holds need not be in host memory.
            needed = wanted if self.device_tier is None else self.device_tier.absent(self.layer, wanted)
            slots = pipeline.acquire(self.layer, needed, experts if number == 0 else None, last, given)
            try:
                if tokens is None or out is None:
                    return self._compute(x, experts, weights, wanted, needed, slots)
                chosen = torch.from_numpy(tokens).to(x.device)
                out[chosen] = self._compute(x[chosen], experts[tokens], weights[chosen], wanted, needed, slots)
            finally:
                if self.device_tier is not None:
                    self.device_tier.copied()
                pipeline.release(self.layer, needed)
        assert out is not None
        return out

    def _compute(
        self,
        x: Tensor,
        experts: np.ndarray,
        weights: Tensor,
        wanted: list[int],
        needed: list[int],
        slots: list[int],
    ) -> Tensor:
        """Compute one group: on the host's slots, or on the device, whose misses are copied or computed on the host."""
        device = self.device_tier
        if device is None:
            return self._call(
                self._run_on_slots, self.tier.slots, x, experts, weights, dict(zip(wanted, slots, strict=True))
            )
        host = dict(zip(needed, slots, strict=True))
        stay = device.cheaper_on_host(self.layer, needed, experts)
        out: Tensor | None = None
        if stay:
            assert self._run_on_host is not None
            with device.computing_on_host(sum(int((experts == e).sum()) for e in stay)):
                there = self._call(
                    self._run_on_host, self.tier.slots, x.cpu(), experts, weights.cpu(), {e: host[e] for e in stay}
                )
            out = there.to(x.device)
        going = [e for e in wanted if e not in stay]
        if going:
            placed = device.bring(self.layer, going, host)
            part = self._call(
                self._run_on_slots, device.slots, x, experts, weights, dict(zip(going, placed, strict=True))
            )
            device.used(placed)
            out = part if out is None else out + part
        return torch.zeros_like(x) if out is None else out

    def _call(
        self, run: Run, none: int, x: Tensor, experts: np.ndarray, weights: Tensor, slots: dict[int, int]
    ) -> Tensor:
        # Ids that stand for "none", or are computed elsewhere, become `none`, which the op takes for "none" too.
        slot_of = np.full(self.num_experts + 1, none, dtype=np.int32)
        slot_of[list(slots)] = list(slots.values())
        remapped = slot_of[np.minimum(experts, self.num_experts)]
        return run(x, torch.from_numpy(remapped).to(x.device), weights)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            "offloaded experts are not in the model's state: call restore() on the offload before saving"
        )

    def extra_repr(self) -> str:
        return f"layer={self.layer}, num_experts={self.num_experts}, slots={self.tier.slots}"


def routing_weights(weights: Tensor, experts: np.ndarray) -> np.ndarray | None:
    """Return (T, K) float32 in the order of the experts (T, K); None where a model hands on something else."""
    if tuple(weights.shape) != experts.shape:
        return None
    return weights.detach().float().numpy(force=True)
