"""The forward of transformers' expert modules on the ops of this package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_kernels.integrations.recognition import Recognized, has_gate, recognize
from moe_kernels.ops.fused_experts import fused_experts
from moe_kernels.ops.grouped_mm import grouped_mm
from moe_kernels.ops.route import route
from moe_kernels.ops.unpermute import unpermute

# A module's answer does not change, and torch.compile need not follow how it was found.
torch.compiler.assume_constant_result(recognize)


def experts_forward(self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Compute an expert module of transformers 5 (`experts_implementation="moe_kernels"`).

    Args:
        hidden_states: (T, H).
        top_k_index: (T, K) int64; an index of num_experts or more is no expert of this rank (expert parallelism).
        top_k_weights: (T, K); or (T, E), as some models of transformers 5.0 have them.

    Returns:
        (T, H) in the dtype of hidden_states.
    """
    found = recognize(self)
    gate_up = getattr(self, found.up)
    # As transformers' own grouped_mm does: under autocast, a norm may have left float32 behind.
    x = hidden_states.to(gate_up.dtype)
    K, E = top_k_index.shape[1], gate_up.shape[0]
    if top_k_weights.shape[1] == E != K:
        top_k_weights = top_k_weights.gather(1, top_k_index.long().clamp(max=E - 1))
    if found.activation is not None and not found.post_norm:
        out = fused_experts(
            x,
            top_k_index,
            top_k_weights,
            gate_up,
            self.down_proj,  # type: ignore[arg-type]
            activation=found.activation,
            interleaved=found.interleaved,
            transposed=found.transposed,
            gate_up_bias=getattr(self, f"{found.up}_bias") if self.has_bias else None,
            down_bias=self.down_proj_bias if self.has_bias else None,  # type: ignore[arg-type]
        )
    else:
        out = _in_steps(self, found, x, top_k_index, top_k_weights)
    return out.to(hidden_states.dtype)


def _in_steps(self: nn.Module, found: Recognized, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Two grouped products with the model's own functions between and after them."""
    gate_up: Tensor = getattr(self, found.up)
    down: Tensor = self.down_proj  # type: ignore[assignment]
    up_bias = getattr(self, f"{found.up}_bias") if self.has_bias else None
    down_bias: Tensor | None = self.down_proj_bias if self.has_bias else None  # type: ignore[assignment]
    plan = route(top_k_index, gate_up.shape[0])
    rows = grouped_mm(x, gate_up, plan.offsets, row_token=plan.row_token, transposed=found.transposed, bias=up_bias)
    rows = self._apply_gate(rows) if has_gate(self) else self.act_fn(rows)  # type: ignore[operator]
    rows = grouped_mm(rows.to(down.dtype), down, plan.offsets, transposed=found.transposed, bias=down_bias)
    if found.post_norm:
        rows = self.post_expert_norm(rows)  # type: ignore[operator]
    return unpermute(rows.to(down.dtype), plan, top_k_weights)
