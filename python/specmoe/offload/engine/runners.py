"""How an experts module computes on slots in place of its experts: with its own code, so with its own bits.

Letters: T tokens, E experts, K experts per token, H hidden, I intermediate, S slots.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe_kernels.integrations.experts import experts_forward
from moe_kernels.quantized.experts import QuantizedExperts, expert_modules
from moe_kernels.quantized_weights import Int8Weight, Nf4Weight, QuantizedWeight

from ..tiers.slots import SlotPool

# Takes x (T, H), the slots' indices (T, K) int32 with S for "none", and weights (T, K); gives (T, H).
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


def runner(kind: str, original: nn.Module, pool: SlotPool, quantization: str) -> Run:
    """Return what computes the experts in the slots.

    Args:
        kind: of the block (see `MoEBlock`).
        original: its experts module; its code and options are used, its weights are not.
        pool: the slots.
        quantization: "", "nf4" or "int8".

    Raises:
        ValueError: experts of this kind cannot be computed from quantized weights.
    """
    if quantization:
        return _quantized(original, pool, quantization)
    if kind == "switch":
        return _switch(original, pool)
    on_slots = copy.copy(original)
    # A module of its own, with the same code and options, whose weights are the slots of all layers.
    on_slots._parameters = dict(original._parameters)
    for name, slots in pool.tensors.items():
        on_slots._parameters[name] = nn.Parameter(slots, requires_grad=False)
    if kind == "own":
        return on_slots
    return lambda x, indices, weights: experts_forward(on_slots, x, indices, weights)


def _quantized(original: nn.Module, pool: SlotPool, quantization: str) -> Run:
    found = next(expert_modules(nn.ModuleDict({"experts": original})), None)
    if found is None:
        raise ValueError(f"offload: store: expected weights as they are for {type(original).__name__}, got quantized")
    layout = found[2]

    def weight(name: str) -> QuantizedWeight:
        if quantization == "int8":
            return Int8Weight(pool.tensors[f"{name}.values"], pool.tensors[f"{name}.scale"])
        return Nf4Weight(pool.tensors[f"{name}.codes"], pool.tensors[f"{name}.absmax"].view(-1))

    def bias(name: str | None) -> nn.Parameter | None:
        return None if name is None else nn.Parameter(pool.tensors[name], requires_grad=False)

    biases = bias(layout.gate_up_bias), bias(layout.down_bias)
    module = QuantizedExperts(layout, weight(layout.gate_up), weight(layout.down), *biases, dynamic=False)
    return module.eval()


def _switch(original: Any, pool: SlotPool) -> Run:
    """Each slot as an MLP: the loop of the original, over the slots that are wanted."""
    template = next(iter(original.children()))
    on_slots = copy.copy(original)
    on_slots._modules = {}
    for slot in range(pool.count):
        part = copy.copy(template)
        part._modules = {**template._modules, "wi": copy.copy(template.wi), "wo": copy.copy(template.wo)}
        for linear, name in ((part.wi, "up_proj"), (part.wo, "down_proj")):
            linear._parameters = {**linear._parameters, "weight": nn.Parameter(pool.tensors[name][slot], False)}
        on_slots._modules[f"expert_{slot}"] = part

    def run(x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        chosen = torch.zeros(len(indices), 1, pool.count + 1, dtype=torch.int64, device=indices.device)
        chosen.scatter_(2, indices.long()[..., None], 1)
        return on_slots(x, chosen[..., : pool.count], weights)

    return run


def chosen_experts(kind: str, selected: Tensor, num_experts: int) -> np.ndarray:
    """Return (T, K) ids from what a block hands to its experts; Switch's (T, 1, E) marks become ids, E for "none"."""
    if kind != "switch":
        return selected.numpy(force=True)
    marks = selected.reshape(-1, num_experts) > 0
    ids = torch.where(marks.any(1), marks.int().argmax(1), num_experts)
    return ids[:, None].numpy(force=True)
