"""Where the expert modules of transformers keep their weights, as `moe_kernels.quantized` wants to know it."""

from __future__ import annotations

from torch import nn

from moe_kernels.integrations.low_bits import PACKED, low_bits
from moe_kernels.integrations.recognition import Recognized, is_experts, recognize
from moe_kernels.quantized.experts import ExpertsLayout, check_weights


def layout_of(module: nn.Module, found: Recognized) -> ExpertsLayout:
    """Say where an expert module keeps its weights; its activation is "" where the module's own function is called."""
    return ExpertsLayout(
        gate_up=found.up,
        down="down_proj",
        gate_up_bias=f"{found.up}_bias" if module.has_bias else None,
        down_bias="down_proj_bias" if module.has_bias else None,
        activation=found.activation or "",
        interleaved=found.interleaved,
        transposed=found.transposed,
        limit=found.limit,
        packed=None if low_bits(module) is None else PACKED,
    )


def experts_layout(module: nn.Module) -> ExpertsLayout | None:
    """Say where an expert module keeps its weights, for `quantize_experts`; None for one that has to run in steps."""
    if not is_experts(module):
        return None
    found = recognize(module)
    return None if found.activation is None or found.post_norm else layout_of(module, found)


def check_layout(op: str, path: str, module: nn.Module) -> None:
    """Require of an expert module that its weights' shapes belong together in the layout that it says it has."""
    check_weights(op, path, module, layout_of(module, recognize(module)))
