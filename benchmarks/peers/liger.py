"""Liger's fused experts (github.com/linkedin/Liger-Kernel, `LigerFusedMoEFunction`)."""

from __future__ import annotations

from torch import Tensor

from peers import Arm, Tokens


def prepare_gpu(gate_up: Tensor, down: Tensor) -> Arm:
    """Return the expert MLP over these weights; see the package."""
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    def forward(tokens: Tokens) -> Tensor:
        return LigerFusedMoEFunction.apply(tokens.x, gate_up, down, tokens.indices, tokens.narrow)

    return Arm(forward, gate_up, down)
