"""Fast Mixture-of-Experts operations for PyTorch, and a drop-in `MoELayer`."""

from moe_kernels import integrations, pages
from moe_kernels.gradients import gradients_in_place
from moe_kernels.integrations import explain, patch
from moe_kernels.layer import MoELayer, RouterOutput
from moe_kernels.ops.fused_experts import fused_experts
from moe_kernels.ops.grouped_lora import grouped_lora, grouped_lora_
from moe_kernels.ops.grouped_mm import grouped_mm
from moe_kernels.ops.permute import permute
from moe_kernels.ops.route import RoutingPlan, route
from moe_kernels.ops.topk_gating import TopKGating, topk_gating
from moe_kernels.ops.unpermute import unpermute
from moe_kernels.quantized import quantize_experts
from moe_kernels.registry import BackendUnavailable, available_backends

__version__ = "0.1.0"
integrations.register_when_imported()
pages.ask_for_huge_pages()

__all__ = [
    "BackendUnavailable",
    "MoELayer",
    "RouterOutput",
    "RoutingPlan",
    "TopKGating",
    "available_backends",
    "explain",
    "fused_experts",
    "gradients_in_place",
    "grouped_lora",
    "grouped_lora_",
    "grouped_mm",
    "patch",
    "permute",
    "quantize_experts",
    "route",
    "topk_gating",
    "unpermute",
]
