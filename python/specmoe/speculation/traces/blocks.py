"""Finding a model's routed blocks by what they are called with, not by the model's name.

transformers 5 hands every expert module `(hidden states, ids, weights)`, and so does `MoELayer`; Switch hands it a
one-hot mask in place of ids. The block is the expert module's parent, the layer around it has the norm.

Letters: T tokens, E experts, K experts per token, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

# The norm between the residual stream and the gate, by the names that transformers' models give it, best first.
NORMS = ("pre_feedforward_layernorm", "post_attention_layernorm", "ffn_norm", "layer_norm", "norm")
SHARED = ("shared_experts", "shared_expert", "shared_mlp")
SHARED_GATE = "shared_expert_gate"
ROUTERS = ("gate", "router")


@dataclass(frozen=True)
class RoutedBlock:
    """One block of a model that routes tokens to experts.

    Args:
        layer: its position among the routed blocks, from 0.
        name: the block's name within the model.
        block: the module that routes.
        experts: its experts' module.
        norm: the norm between the residual stream and the gate; None where none was found.
        shared: the module of the shared expert; None where there is none.
    """

    layer: int
    name: str
    block: nn.Module
    experts: nn.Module
    norm: nn.Module | None
    shared: nn.Module | None

    @property
    def router(self) -> nn.Module | None:
        """The module that scores the experts."""
        return next((m for name in ROUTERS if isinstance(m := getattr(self.block, name, None), nn.Module)), None)

    @property
    def gate_weight(self) -> Tensor | None:
        """(E, H), the router's matrix; None where it has no single one."""
        router = self.router
        for module in (router, getattr(router, "classifier", None), getattr(router, "wg", None)):
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2:
                return weight.detach()
        return None

    @property
    def gate_bias(self) -> Tensor | None:
        """(E,), what the router adds to its scores before it chooses; None where it adds nothing."""
        router = self.router
        for name in ("e_score_correction_bias", "bias"):
            bias = getattr(router, name, None)
            if isinstance(bias, Tensor):
                return bias.detach()
        return None


def find_blocks(model: nn.Module, within: str = "") -> list[RoutedBlock]:
    """Find the routed blocks of a model, in the order of its modules.

    Args:
        model: any model whose experts are one module called `experts`.
        within: only blocks whose name begins with this, as `encoder` of a model that has two stacks.

    Raises:
        ValueError: there is none.
    """
    modules = dict(model.named_modules())
    found: list[RoutedBlock] = []
    for name, module in modules.items():
        experts = getattr(module, "experts", None)
        if not isinstance(experts, nn.Module) or not name.startswith(within):
            continue
        if not any(isinstance(getattr(module, r, None), nn.Module) for r in ROUTERS):
            continue
        parent = modules[name.rpartition(".")[0]]
        norm = next((m for n in NORMS if isinstance(m := getattr(parent, n, None), nn.Module)), None)
        shared = next((m for n in SHARED if isinstance(m := getattr(module, n, None), nn.Module)), None)
        found.append(RoutedBlock(len(found), name, module, experts, norm, shared))
    if not found:
        raise ValueError(
            f"trace: model: expected blocks with a router and a module named experts, got none in "
            f"{type(model).__name__}{f' under {within}' if within else ''}"
        )
    return found


def called_with(inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return ids (T, K) and weights (T, K) from the arguments of an experts module, largest weight first."""
    arguments = [*inputs, *keywords.values()]
    indices, weights = arguments[1].detach(), arguments[2].detach().float()
    T = arguments[0].numel() // arguments[0].shape[-1]
    indices, weights = indices.reshape(T, -1), weights.reshape(T, -1)
    if indices.shape != weights.shape:
        # A one-hot mask over E experts beside K = 1 weight; a token that was dropped has no one in it.
        mask, E = indices, indices.shape[1]
        indices = torch.where(mask.bool().any(1, keepdim=True), mask.argmax(1, keepdim=True), E)
    order = weights.argsort(dim=1, descending=True, stable=True)
    return indices.gather(1, order), weights.gather(1, order)
