"""Adapters as PEFT saves them, with a file beside them that says which base they belong to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModelForCausalLM, TaskType, load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..training.checkpoints import MANIFEST, publish, put_back, verify
from .base import Base

BASE_FILE = "specmoe_base.json"
_PREFIX = "base_model.model."
# What is more than the product of two factors, for all tokens of an unchanged base, would be lost.
_PLAIN = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
    "kasa_config": None,
}


@dataclass(frozen=True)
class Adapter:
    """The factors of one adapter.

    Attributes:
        name: what rows of a batch call it.
        factors: for each linear layer, by its name in the base, A (R, in) and B (out, R).
        scaling: for each of them, what the product is multiplied by.
    """

    name: str
    factors: dict[str, tuple[Tensor, Tensor]]
    scaling: dict[str, float]

    @property
    def parameters(self) -> int:
        """Number of values in all factors."""
        return sum(A.numel() + B.numel() for A, B in self.factors.values())


class DomainModel(PeftModelForCausalLM):
    """PEFT's model with one adapter, which is saved in PEFT's format beside the name and digest of its base."""

    origin: Base

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes the adapter and the file that names its base."""
        # What PEFT asks the hub about, an embedding that has grown, does not happen here.
        super().save_pretrained(save_directory, *args, **{"save_embedding_layers": False, **kwargs})
        write_base_file(Path(save_directory), self.origin)


def new_adapter(base: Base, rank: int, alpha: int, dropout: float, seed: int, targets: Iterable[str]) -> DomainModel:
    """Returns the base with a fresh adapter that changes nothing yet; `unload()` takes it off again.

    Args:
        base: the base; its layers are wrapped in place.
        rank: of every factor.
        alpha: the product is multiplied by alpha / rank.
        dropout: on the adapter's input, in training.
        seed: of the first factor's random values.
        targets: names of the linear layers.
    """
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=sorted(targets), task_type=TaskType.CAUSAL_LM
    )
    config.base_model_name_or_path = base.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DomainModel(base.model, config)
    model.origin = base
    return model


def write_base_file(folder: Path, base: Base) -> None:
    """Writes which base the adapter in a folder belongs to."""
    (folder / BASE_FILE).write_text(json.dumps({"base": base.name, "digest": base.digest}, indent=1))


def check_base(folder: Path, base: Base) -> None:
    """Checks that an adapter belongs to a base; one without the file is taken at its word.

    Raises:
        ValueError: it was trained on other weights.
    """
    path = folder / BASE_FILE
    if not path.is_file():
        return
    try:
        stored = json.loads(path.read_text())
        trained_on, digest = stored["base"], stored["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"adapter: {path}: expected the name and digest of a base: {error!r}") from error
    if digest != base.digest:
        raise ValueError(
            f"adapter: {folder}: expected its own base {trained_on} (digest {digest}), "
            f"got {base.name} (digest {base.digest})"
        )


def read_adapter(folder: Path, name: str, base: Base | None = None) -> Adapter:
    """Returns the factors of an adapter that PEFT has saved.

    Args:
        folder: where `adapter_config.json` is.
        name: what to call it.
        base: checked to be the one that it was trained on.

    Raises:
        ValueError: no such adapter, a damaged one, one of another base, or one that is more than low-rank products.
    """
    put_back(folder.parent, folder.name)
    if not (folder / "adapter_config.json").is_file():
        raise ValueError(f"adapter: {folder}: expected adapter_config.json, found no such file")
    if (folder / MANIFEST).is_file():
        verify(folder)
    if base is not None:
        check_base(folder, base)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        weights = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"adapter: {folder}: not loaded: {error}") from error
    if not isinstance(config, LoraConfig):
        raise ValueError(f"adapter: {folder}: expected a LoRA adapter, got {config.peft_type}")
    for option, plain in _PLAIN.items():
        if getattr(config, option, plain) not in (plain, None, []):
            raise ValueError(f"adapter: {folder}: {option}: expected {plain}, got {getattr(config, option)}")
    return adapter_of(weights, config, name)


def write_adapter(adapter: Adapter, folder: Path, base: Base) -> None:
    """Writes an adapter in PEFT's format, whole or not at all, beside the file that names its base.

    Raises:
        CheckpointError: it could not be written; what was there stays.
    """
    ranks = {layer: A.shape[0] for layer, (A, _) in adapter.factors.items()}
    config = LoraConfig(
        target_modules=sorted(ranks),
        rank_pattern=ranks,
        # Scaling is alpha / rank.
        alpha_pattern={layer: adapter.scaling[layer] * rank for layer, rank in ranks.items()},
        task_type=TaskType.CAUSAL_LM,
        inference_mode=True,
        base_model_name_or_path=base.name,
    )
    pairs = {layer: dict(zip("AB", factors, strict=True)) for layer, factors in adapter.factors.items()}
    weights = {
        f"{_PREFIX}{layer}.lora_{which}.weight": value.detach().cpu().contiguous()
        for layer, pair in pairs.items()
        for which, value in pair.items()
    }

    def write(target: Path) -> None:
        config.save_pretrained(str(target))
        save_file(weights, target / "adapter_model.safetensors", metadata={"format": "pt"})
        write_base_file(target, base)

    publish(folder.parent, folder.name, write)


def adapter_of(weights: dict[str, Tensor], config: LoraConfig, name: str) -> Adapter:
    """Returns the factors among PEFT's weights of one adapter, whose names carry no adapter name.

    Raises:
        ValueError: a weight that is no factor of a linear layer.
    """
    alphas = config.alpha_pattern or {}
    factors, scaling = {}, {}
    for key in sorted(weights):
        layer, kind, _ = key.removeprefix(_PREFIX).rpartition(".lora_A.weight")
        if not kind:
            if ".lora_B.weight" not in key:
                raise ValueError(f"adapter: {name}: expected factors of linear layers, got {key}")
            continue
        A, B = weights[key], weights[key.replace("lora_A", "lora_B")]
        factors[layer] = (A, B)
        rank = A.shape[0]
        alpha = alphas.get(get_pattern_key(list(alphas), layer), config.lora_alpha)
        scaling[layer] = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    return Adapter(name, factors, scaling)
