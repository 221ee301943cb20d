"""The MoE transformer, registered with transformers' Auto classes when this package is imported."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .config import SpecMoeConfig
from .model import SpecMoeForCausalLM, SpecMoeModel, SpecMoePreTrainedModel
from .outputs import SpecMoeCausalLMOutput, SpecMoeModelOutput

# exist_ok: a second import under another path (a notebook's reload) registers the same names again.
AutoConfig.register(SpecMoeConfig.model_type, SpecMoeConfig, exist_ok=True)
AutoModel.register(SpecMoeConfig, SpecMoeModel, exist_ok=True)
AutoModelForCausalLM.register(SpecMoeConfig, SpecMoeForCausalLM, exist_ok=True)

__all__ = [
    "SpecMoeCausalLMOutput",
    "SpecMoeConfig",
    "SpecMoeForCausalLM",
    "SpecMoeModel",
    "SpecMoeModelOutput",
    "SpecMoePreTrainedModel",
]
