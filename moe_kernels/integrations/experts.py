"""The forward of transformers' expert modules on the ops of this package."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe_kernels.choices import weights_of_choices
from moe_kernels.integrations.low_bits import low_bits, widen_at_first_use
from moe_kernels.integrations.recognition import Recognized, has_gate, recognize
from moe_kernels.integrations.steps import Parts, experts_in_steps
from moe_kernels.integrations.when_imported import when_imported
from moe_kernels.ops.fused_experts import fused_experts


def parts_of(module: nn.Module, found: Recognized) -> Parts:
    """Name what an expert module of transformers 5 is made of."""
    return Parts(
        gate_up=getattr(module, found.up),
        down=module.down_proj,  # type: ignore[arg-type]
        gate_up_bias=getattr(module, f"{found.up}_bias") if module.has_bias else None,
        down_bias=module.down_proj_bias if module.has_bias else None,  # type: ignore[arg-type]
        transposed=found.transposed,
        between=module._apply_gate if has_gate(module) else module.act_fn,  # type: ignore[arg-type]
        after=module.post_expert_norm if found.post_norm else None,  # type: ignore[arg-type]
    )


# A module's answer does not change, and torch.compile need not follow how it was found. Told when the compiler is
# imported, which takes seconds and more than 100 MB: whoever compiles nothing does without.
when_imported("torch._dynamo", lambda _: torch.compiler.assume_constant_result(recognize))


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
    parts = parts_of(self, found)
    # As transformers' own grouped_mm does: under autocast, a norm may have left float32 behind.
    x = hidden_states.to(parts.down.dtype)
    top_k_weights = weights_of_choices(top_k_index, top_k_weights, parts.down.shape[0])
    if found.activation is None or found.post_norm:
        return experts_in_steps(parts, x, top_k_index, top_k_weights).to(hidden_states.dtype)
    out = fused_experts(
        x,
        top_k_index,
        top_k_weights,
        parts.gate_up,
        parts.down,
        activation=found.activation,
        limit=found.limit,
        interleaved=found.interleaved,
        transposed=found.transposed,
        gate_up_bias=parts.gate_up_bias,
        down_bias=parts.down_bias,
    )
    return out.to(hidden_states.dtype)


def low_bits_forward(self: nn.Module, *arguments: Tensor, **named: Tensor) -> Tensor:
    """Compute experts that transformers keeps in FP8; at the first call, they are turned into ordinary ones."""
    if low_bits(self) is not None:
        widen_at_first_use(self)
    return experts_forward(self, *arguments, **named)
