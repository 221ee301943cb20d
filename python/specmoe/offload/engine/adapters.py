"""Where a model keeps its experts, norms and gates: our own transformer, and those of transformers 5.

Letters: T tokens, E experts, K experts per token, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_kernels.integrations.recognition import is_experts
from moe_kernels.layer import Experts

# What stands between the residual stream and the gate, by the name that decoder blocks give it.
NORMS = ("post_attention_layernorm", "layer_norm")


@dataclass(frozen=True)
class MoEBlock:
    """One Mixture-of-Experts block of a model.

    Args:
        layer: its position among the MoE blocks, from 0.
        name: its name within the model; `name.experts` is that of its experts.
        moe: the module that routes, and calls its `experts`.
        norm: the norm between the residual stream and the gate.
        num_experts: E.
        top_k: K.
        kind: "own", "transformers" (stacks behind its experts interface) or "switch" (an MLP for each expert).
    """

    layer: int
    name: str
    moe: Any
    norm: nn.Module
    num_experts: int
    top_k: int
    kind: str

    @property
    def router(self) -> Any:
        """The module that scores experts."""
        return self.moe.gate if hasattr(self.moe, "gate") else self.moe.router

    def scores(self, residual: Tensor) -> Tensor:
        """Return (T, E): this block's routing scores for a residual stream (T, H), in the order that it chooses by."""
        router = getattr(self.router, "classifier", self.router)
        # `forward` passes over the hook that notes the residual stream: this one is another layer's.
        normed = self.norm.forward(residual).to(router.weight.dtype)
        logits = F.linear(normed, router.weight, getattr(router, "bias", None))
        bias: Tensor | None = getattr(self.router, "e_score_correction_bias", None)
        return logits if bias is None else logits.sigmoid() + bias


def moe_blocks(model: nn.Module) -> list[MoEBlock]:
    """Find a model's Mixture-of-Experts blocks, in the order in which they run.

    Raises:
        ValueError: it has none of a known kind, or they differ in experts or experts per token.
    """
    found: list[MoEBlock] = []
    for name, module in model.named_modules():
        moe = getattr(module, "mlp", None)
        norm = next((n for attribute in NORMS if isinstance(n := getattr(module, attribute, None), nn.Module)), None)
        found_experts = getattr(moe, "experts", None)
        if not isinstance(moe, nn.Module) or norm is None or not isinstance(found_experts, nn.Module):
            continue
        experts: nn.Module = getattr(found_experts, "original", found_experts)
        kind = kind_of(experts)
        if kind is not None:
            count, k = _sizes(moe, experts, kind, model)
            found.append(MoEBlock(len(found), f"{name}.mlp", moe, norm, count, k, kind))
    if not found:
        raise ValueError(
            f"offload: model: expected decoder blocks with a MoELayer as `mlp` and a `post_attention_layernorm`, or "
            f"experts of transformers, got none in {type(model).__name__}"
        )
    kinds = {(block.num_experts, block.top_k) for block in found}
    if len(kinds) > 1:
        raise ValueError(f"offload: model: expected blocks of one kind, got (E, K) of {sorted(kinds)}")
    return found


def kind_of(experts: nn.Module) -> str | None:
    """Name the kind of an experts module; None for one that is not known."""
    if isinstance(experts, Experts):
        return "own"
    if is_experts(experts):
        return "transformers"
    parts = list(experts.children()) if isinstance(experts, nn.ModuleDict) else []
    return "switch" if parts and all(hasattr(p, "wi") and hasattr(p, "wo") for p in parts) else None


def _sizes(moe: Any, experts: Any, kind: str, model: Any) -> tuple[int, int]:
    if kind == "own":
        return moe.num_experts, moe.top_k
    if kind == "switch":
        return len(experts), 1
    router = moe.gate if hasattr(moe, "gate") else moe.router
    for owner in (router, moe, getattr(model, "config", None)):
        for attribute in ("top_k", "num_experts_per_tok"):
            if isinstance(k := getattr(owner, attribute, None), int):
                return experts.num_experts, k
    raise ValueError(f"offload: model: expected {type(moe).__name__} to say how many experts a token has, got nothing")


def expert_weights(block: MoEBlock, expert: int) -> dict[str, Tensor]:
    """Return the weights of one expert of a block, by name."""
    experts = block.moe.experts
    if block.kind == "switch":
        part = experts[f"expert_{expert}"]
        return {"up_proj": part.wi.weight.data, "down_proj": part.wo.weight.data}
    return {name: parameter.data[expert] for name, parameter in experts.named_parameters()}


def free_weights(experts: nn.Module) -> None:
    """Let go of the memory of an experts module."""
    for parameter in experts.parameters():
        parameter.data = parameter.data.new_empty(0)


def put_weights(block: MoEBlock, experts: Any, weights: list[dict[str, Tensor]]) -> None:
    """Give an experts module its weights back, one dictionary for each expert."""
    if block.kind == "switch":
        for number, tensors in enumerate(weights):
            part = experts[f"expert_{number}"]
            part.wi.weight.data, part.wo.weight.data = tensors["up_proj"], tensors["down_proj"]
        return
    for name, parameter in experts.named_parameters():
        parameter.data = torch.stack([tensors[name] for tensors in weights])
