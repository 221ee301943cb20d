"""Every model of the installed transformers that has experts behind its interface, tiny, ours against their own.

Nothing is listed: the expert classes are those whose forward is the one that `use_experts_implementation` puts there,
the models are the classes around them, and for each configuration class the model that can do most is taken.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
import transformers
from tiny_models import tiny_config
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations import moe


class Case(NamedTuple):
    """A configuration class, the model that is built from it, and the classes of the experts in it."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    experts: tuple[type[nn.Module], ...]


def _modules() -> Iterator[ModuleType]:
    """Import the modeling files in which the decorator is used."""
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if "@use_experts_implementation" in path.read_text():
            yield importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")


def _own_classes(module: ModuleType, base: type) -> list[type]:
    found = inspect.getmembers(module, lambda c: inspect.isclass(c) and issubclass(c, base))
    # An old name of a class is the same object twice.
    return [c for name, c in found if c.__module__ == module.__name__ and c.__name__ == name]


def is_experts_class(cls: type[nn.Module]) -> bool:
    """Whether a class's forward is the one that the decorator puts there."""
    return cls.forward.__code__.co_filename == moe.__file__


@cache
def expert_classes() -> tuple[type[nn.Module], ...]:
    """Return every class of experts."""
    return tuple(c for module in _modules() for c in _own_classes(module, nn.Module) if is_experts_class(c))


def _rank(model: type[PreTrainedModel]) -> tuple[int, str]:
    """Sort first what generates and has a loss."""
    has_loss = "labels" in inspect.signature(model.forward).parameters
    return -2 * model.can_generate() - has_loss, model.__name__


def build(model: type[PreTrainedModel], device: str = "cpu") -> PreTrainedModel:
    """Make a tiny model; its parameters are as its own initialization leaves them."""
    with torch.device(device):
        return model(tiny_config(model.config_class))


def _is_whole(model: type[PreTrainedModel]) -> bool:
    """Whether a class is more than a base class or a part of a model."""
    needed = [
        p for p in inspect.signature(model).parameters.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL
    ]
    return inspect.isclass(model.config_class) and len(needed) == 1 and not model.__name__.endswith("PreTrainedModel")


def _default(config: type[PreTrainedConfig]) -> PreTrainedConfig:
    try:
        return config()
    # Its parts have to be said.
    except Exception:
        return PreTrainedConfig()


def _wrappers(configs: set[type[PreTrainedConfig]]) -> Iterator[ModuleType]:
    """Import the modeling files of configurations that have one of these inside by default, as a type and no class."""
    names = tuple(f'"{config.model_type}"' for config in configs if config.model_type)
    own = {config.__module__ for config in configs}
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/configuration_*.py")):
        module = f"transformers.models.{path.parent.name}.{path.stem}"
        modeling = path.with_name(path.name.replace("configuration", "modeling"))
        if module in own or not modeling.exists() or not any(name in path.read_text() for name in names):
            continue
        for config in _own_classes(importlib.import_module(module), PreTrainedConfig):
            if any(type(value) in configs for value in vars(_default(config)).values()):
                yield importlib.import_module(module.replace("configuration_", "modeling_"))
                break


@cache
def cases() -> tuple[Case, ...]:
    """Return one case for each configuration class with experts, by name."""
    chosen = _choose(_modules())
    chosen |= _choose(_wrappers(set(chosen)))
    return tuple(sorted(chosen.values(), key=lambda case: case.config.__name__.lower()))


def _choose(modules: Iterable[ModuleType]) -> dict[type[PreTrainedConfig], Case]:
    chosen: dict[type[PreTrainedConfig], Case] = {}
    for module in modules:
        for model in sorted(_own_classes(module, PreTrainedModel), key=_rank):
            if not _is_whole(model) or model.config_class in chosen:
                continue
            experts = {type(m) for m in build(model, "meta").modules() if is_experts_class(type(m))}
            if experts:
                in_order = tuple(sorted(experts, key=lambda c: c.__name__))
                chosen[model.config_class] = Case(model.config_class, model, in_order)
    return chosen
