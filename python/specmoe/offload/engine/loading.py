"""Loading a checkpoint without its experts: they stay where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import Checkpoint, CheckpointError, ExpertSource
from .adapters import moe_blocks


class Hollow(nn.Module):
    """Stands for experts that were never loaded; `original` is their module, without weights."""

    original: nn.Module

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original


def load_without_experts(folder: str | Path) -> Any:
    """Load a model with everything but its experts, which are `Hollow` then; `offload` fills them.

    Args:
        folder: a directory with config.json and safetensors files. Numbers of few bits (FP8) become the
            configuration's dtype.

    Raises:
        CheckpointError: the checkpoint is damaged, or its architecture is not known.
    """
    import transformers

    import specmoe.transformer  # noqa: F401  (registers the architecture)

    checkpoint = Checkpoint(folder)
    source = ExpertSource(checkpoint)
    config = transformers.AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    known = _model_class(checkpoint, config)
    dense = {}
    for name, entry in checkpoint.entries.items():
        if name not in source.names and not name.endswith("_scale_inv") and not source.beyond(name):
            dense[name] = source.matrix(name) if len(entry.shape) == 2 else checkpoint.read(name)

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        known.__init__(self, config, *arguments, **options)
        for block in moe_blocks(self):
            block.moe.experts = Hollow(block.moe.experts)
            # Some initialize their experts from here; what else the block has, it is given.
            block.moe._is_hf_initialized = True

    # Named as the class that it stands for: transformers looks conversions and tied weights up by names.
    hollow = type(known.__name__, (known,), {"__init__": build, "__module__": known.__module__})
    with _quiet():
        model = hollow.from_pretrained(None, config=config, state_dict=dense, dtype=source.dtype)  # type: ignore[attr-defined]
    model.__class__ = known
    if (Path(folder) / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model.eval()


def _model_class(checkpoint: Checkpoint, config: Any) -> Any:
    import transformers

    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise CheckpointError(
        f"checkpoint {checkpoint.folder}: expected a model that generates text, got {type(config).__name__}"
    )


class _quiet:
    """Keeps transformers from its progress bars and its report of what was not loaded, which is what was meant."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level, self._bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()


def is_hollow(model: nn.Module) -> bool:
    """Whether a model was loaded without its experts."""
    return any(isinstance(module, Hollow) for module in model.modules())


def dense_bytes(model: nn.Module) -> int:
    """Return the bytes of what is not experts."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.device != torch.device("meta"))
