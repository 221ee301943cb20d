"""Who is measured: each backend of ours that is for this device, and the other libraries."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from peers import Arm, Tokens, grouped_mm, liger, scattermoe, sonicmoe, vllm_gpu
from torch import Tensor

from moe_kernels import fused_experts
from moe_kernels.registry import BACKENDS

PEERS: dict[str, Callable[[Tensor, Tensor], Arm]] = {
    "torch grouped_mm": grouped_mm.prepare_gpu,
    "ScatterMoE": scattermoe.prepare_gpu,
    "Liger": liger.prepare_gpu,
    "SonicMoE": sonicmoe.prepare_gpu,
    "vLLM": vllm_gpu.prepare_gpu,
}
# The tolerance of ours times this: others round in more places, e.g. weighted rows before the sum.
PEERS_TOLERANCE = 3.0


def ours(device: torch.device) -> list[str]:
    """Return the names of the backends to measure; for a CPU, to try the harness, those that run there."""
    on_gpu = [backend.name for backend in BACKENDS if backend.name not in ("cpu", "reference")]
    return on_gpu if device.type == "cuda" else ["cpu", "reference"]


def supports_batch_invariance() -> bool:
    """Whether this version of the package has the option."""
    return "batch_invariant" in inspect.signature(fused_experts).parameters


def arm(name: str, gate_up: Any, down: Any, **options: Any) -> Arm:
    """Return an arm by its name: a backend's, or a peer's.

    Args:
        gate_up, down: tensors, or quantized weights (for ours alone).
        options: of `fused_experts`.

    Raises:
        Unavailable, ImportError: a peer is not installed or does not run here.
    """
    if name in PEERS:
        return PEERS[name](gate_up, down)

    def forward(tokens: Tokens) -> Tensor:
        return fused_experts(tokens.x, tokens.indices, tokens.routing, gate_up, down, backend=name, **options)

    return Arm(forward, gate_up, down)
