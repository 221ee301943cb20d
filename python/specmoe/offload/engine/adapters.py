"""Where a model keeps its experts, norms and gates.

Letters: T tokens, E experts, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from moe_kernels import MoELayer


@dataclass(frozen=True)
class MoEBlock:
    """One Mixture-of-Experts block of a model.

    Args:
        layer: its position among the MoE blocks, from 0.
        name: its name within the model.
        moe: the module that routes; its `experts` is called as `experts(x (T, H), indices (T, K), weights (T, K))`.
        norm: the norm between the residual stream and the gate.
    """

    layer: int
    name: str
    moe: MoELayer
    norm: nn.Module

    @property
    def num_experts(self) -> int:
        return self.moe.num_experts

    @property
    def top_k(self) -> int:
        return self.moe.top_k

    def scores(self, residual: Tensor) -> Tensor:
        """Return (T, E): this block's routing scores for a residual stream (T, H), in the order that it chooses by."""
        # `forward` passes over the hook that notes the residual stream: this one is another layer's.
        logits = F.linear(self.norm.forward(residual), self.moe.gate.weight)
        bias: Tensor | None = dict(self.moe.gate.named_buffers()).get("e_score_correction_bias")
        return logits if bias is None else logits.sigmoid() + bias


def moe_blocks(model: nn.Module) -> list[MoEBlock]:
    """Find a model's Mixture-of-Experts blocks.

    Raises:
        ValueError: it has none of a known kind, or they differ in experts or experts per token.
    """
    found: list[MoEBlock] = []
    for name, module in model.named_modules():
        moe, norm = getattr(module, "mlp", None), getattr(module, "post_attention_layernorm", None)
        if isinstance(moe, MoELayer) and isinstance(norm, nn.Module):
            found.append(MoEBlock(len(found), f"{name}.mlp", moe, norm))
    if not found:
        raise ValueError(
            f"offload: model: expected decoder blocks with a MoELayer as `mlp` and a `post_attention_layernorm`, "
            f"got none in {type(model).__name__}"
        )
    kinds = {(block.num_experts, block.top_k) for block in found}
    if len(kinds) > 1:
        raise ValueError(f"offload: model: expected blocks of one kind, got (E, K) of {sorted(kinds)}")
    return found


def expert_tensors(block: MoEBlock) -> dict[str, Tensor]:
    """Return the experts' weights of a block: name to (E, ...)."""
    return {name: parameter.data for name, parameter in block.moe.experts.named_parameters()}
