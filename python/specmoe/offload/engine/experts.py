"""The module that stands where a block's experts were.

Letters: T tokens, E experts, K experts per token, H hidden, S slots.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from ..tiers import HostTier
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
    """

    original: nn.Module
    _run_on_slots: Run

    def __init__(self, block: MoEBlock, original: nn.Module, tier: HostTier) -> None:
        super().__init__()
        self.layer = block.layer
        self.num_experts = block.num_experts
        self.kind = block.kind
        self.tier = tier
        self.pipeline: ExpertPipeline | None = None
        # Neither is a submodule: their weights are not this model's to save, move or train.
        self.__dict__["original"] = original
        self.__dict__["_run_on_slots"] = runner(block.kind, original, tier.pool, tier.store.layout.quantization)

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
            self.tier.slots,
            lambda: self.tier.resident_experts(self.layer, self.num_experts),
        )
        out = None if len(groups) == 1 else torch.empty_like(x)
        for number, (tokens, wanted) in enumerate(groups):
            last = number == len(groups) - 1
            slots = pipeline.acquire(self.layer, wanted, experts if number == 0 else None, last)
            try:
                if tokens is None or out is None:
                    return self._call(x, experts, weights, wanted, slots)
                chosen = torch.from_numpy(tokens)
                out[chosen] = self._call(x[chosen], experts[tokens], weights[chosen], wanted, slots)
            finally:
                pipeline.release(self.layer, wanted)
        assert out is not None
        return out

    def _call(self, x: Tensor, experts: np.ndarray, weights: Tensor, wanted: list[int], slots: list[int]) -> Tensor:
        # Ids that stand for "none" become S, which the op takes for "none" too.
        slot_of = np.full(self.num_experts + 1, self.tier.slots, dtype=np.int32)
        slot_of[wanted] = slots
        remapped = slot_of[np.minimum(experts, self.num_experts)]
        return self._run_on_slots(x, torch.from_numpy(remapped), weights)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            "offloaded experts are not in the model's state: call restore() on the offload before saving"
        )

    def extra_repr(self) -> str:
        return f"layer={self.layer}, num_experts={self.num_experts}, slots={self.tier.slots}"
