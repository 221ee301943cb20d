"""Running a model whose experts stay on disk: the modules that stand in for them, and what drives the tiers."""

from __future__ import annotations

from .adapters import MoEBlock, expert_weights, moe_blocks
from .loading import load_without_experts
from .offload import Offload, offload, require_same_weights, slots_within
from .pipeline import ExpertPipeline
from .recorder import record_routes
from .stores import build_model_store

__all__ = [
    "ExpertPipeline",
    "MoEBlock",
    "Offload",
    "build_model_store",
    "expert_weights",
    "load_without_experts",
    "moe_blocks",
    "offload",
    "record_routes",
    "require_same_weights",
    "slots_within",
]
