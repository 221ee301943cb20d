"""SonicMoE's experts behind any router (github.com/Dao-AILab/sonic-moe, `moe_general_routing_inputs`)."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from peers import Arm, Tokens

# What versions call the argument that says that the gates come first, and not in turn with the ups.
CONCATENATED = ("concat_layout", "is_concatenated_gate_up")


def _in_turn(gate_up: Tensor) -> Tensor:
    """Return a leaf with the gate and up rows (E, 2I, H) alternating."""
    E, width, H = gate_up.shape
    alternating = gate_up.detach().view(E, 2, width // 2, H).transpose(1, 2).reshape(E, width, H)
    return alternating.requires_grad_(gate_up.requires_grad)


def prepare_gpu(gate_up: Tensor, down: Tensor) -> Arm:
    """Return the expert MLP; its gate_up is a reordered copy where the version takes nothing else."""
    from sonicmoe.enums import ActivationType
    from sonicmoe.functional import moe_general_routing_inputs

    known = inspect.signature(moe_general_routing_inputs).parameters
    concatenated = next((name for name in CONCATENATED if name in known), None)
    options = {concatenated: True} if concatenated else {}
    own = gate_up if concatenated else _in_turn(gate_up)
    E = down.shape[0]

    def forward(tokens: Tokens) -> Tensor:
        T, K = tokens.indices.shape
        device = tokens.x.device
        row_token = torch.arange(T, device=device, dtype=torch.int32).repeat_interleave(K)
        return moe_general_routing_inputs(
            tokens.x,
            tokens.routing.reshape(-1),
            row_token,
            tokens.indices.reshape(-1),
            own.permute(1, 2, 0),
            None,
            down.permute(1, 2, 0),
            None,
            E,
            torch.cuda.current_stream(device).cuda_stream,
            ActivationType.SWIGLU,
            not torch.is_grad_enabled(),
            **options,
        )[0]

    return Arm(forward, own, down, interleaved=not concatenated)
