"""What PEFT does for a batch of rows with different adapters: its own LoRA layer, given `adapter_names`."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Prepared(nn.Module):
    """Stands for a base layer whose result is there already: the same tensor at every call."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        return self.result


def lora_layer(base: nn.Linear, A: Tensor, B: Tensor, scaling: float) -> nn.Module:
    """Return PEFT's LoRA layer over `base` with the adapters "0", "1", …, whose weights are A (G, R, H), B (G, O, R).

    Called as layer(x, adapter_names=[…]), one name a row.
    """
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    G, R = A.shape[:2]
    config = LoraConfig(r=R, lora_alpha=round(scaling * R), init_lora_weights=False)
    with torch.device("meta"):
        layer = Linear(base, "0", config=config, r=R, lora_alpha=config.lora_alpha)
        for g in range(1, G):
            layer.update_layer(str(g), R, lora_alpha=config.lora_alpha, config=config)
    for g in range(G):
        layer.lora_A[str(g)].weight = nn.Parameter(A[g], requires_grad=False)
        layer.lora_B[str(g)].weight = nn.Parameter(B[g], requires_grad=False)
    return layer.eval()


def without_base(layer: nn.Module, result: Tensor) -> nn.Module:
    """Let the layer's base layer return `result`, which each call then adds its deltas to."""
    layer.base_layer = Prepared(result)
    return layer
