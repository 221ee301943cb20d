"""vLLM's Triton experts for GPUs, `fused_experts`; for inference alone."""

from __future__ import annotations

from torch import Tensor

from peers import Arm, Tokens


def prepare_gpu(gate_up: Tensor, down: Tensor) -> Arm:
    """Return the expert MLP over these weights; see the package."""
    from vllm.model_executor.layers.fused_moe import fused_experts

    def forward(tokens: Tokens) -> Tensor:
        return fused_experts(tokens.x, gate_up, down, tokens.routing, tokens.indices)

    return Arm(forward, gate_up, down, trains=False)
