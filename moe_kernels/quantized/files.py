"""Models with quantized experts in safetensors files.

A file holds the model's state_dict; its metadata say, as JSON, which modules are quantized, and how.
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moe_kernels.number_formats import FORMATS
from moe_kernels.quantized.experts import ExpertsLayout, QuantizedExperts, biases, expert_modules, put, weight_shape
from moe_kernels.quantized_weights import WEIGHTS, QuantizedWeight
from moe_kernels.validation import fail

_KEY = "moe_kernels.quantized"
_VERSION = 1


def _safetensors(op: str) -> Any:
    try:
        importlib.import_module("safetensors.torch")
        return importlib.import_module("safetensors")
    except ImportError as error:
        raise ImportError(f"{op}: needs the package safetensors (pip install safetensors): {error}") from error


def save_quantized(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state_dict of a model with quantized experts, and what `load_quantized` needs to know.

    The file appears at its path when it is complete.

    Raises:
        ValueError: the model has no quantized experts.
        ImportError: safetensors is not installed.
    """
    op = "save_quantized"
    safetensors = _safetensors(op)
    modules = {
        name: {"format": module.format, "dynamic": module.dynamic}
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, QuantizedExperts)
    }
    if not modules:
        fail(op, "model", "a model with quantized experts", f"{type(model).__name__} without any")
    # safetensors takes no two tensors that share memory: tied ones are written once.
    kept: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        if value.is_meta:
            fail(op, f"model: {name}", "values", "a meta tensor")
        same = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and same in kept:
            aliases[name] = kept[same]
            continue
        kept[same] = name
        value = value.detach().contiguous()
        storage = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if storage in storages else value
        storages.add(storage)
    described = json.dumps({"version": _VERSION, "modules": modules, "aliases": aliases})
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        safetensors.torch.save_file(tensors, partial, metadata={_KEY: described, "format": "pt"})
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def load_quantized(model: nn.Module, path: str | os.PathLike[str]) -> nn.Module:
    """Load a file of `save_quantized` into an unquantized model of the same architecture.

    The expert modules that the file has quantized are replaced as `quantize_experts` does; everything else is copied
    into the model's tensors, or, where those are on the meta device, takes their place. (Buffers that are not in a
    state_dict stay as the model has them, on the meta device too.)

    Returns:
        model.

    Raises:
        ValueError: the file is damaged, is another file, or does not fit; the model is as it was.
        ImportError: safetensors is not installed.
    """
    op = "load_quantized"
    described, tensors = _read(op, path)
    layouts = {name: (module, layout) for name, module, layout in expert_modules(model)}
    replaced: dict[str, QuantizedExperts] = {}
    by_module: dict[int, QuantizedExperts] = {}
    for name, options in described["modules"].items():
        if name not in layouts:
            fail(op, "model", f"unquantized experts at {name!r}", "none there")
        module, layout = layouts[name]
        if id(module) not in by_module:
            by_module[id(module)] = _rebuild(op, name, module, layout, options, tensors)
        replaced[name] = by_module[id(module)]

    wanted = {
        name: value.shape
        for name, value in model.state_dict().items()
        if not any(name.startswith(f"{path}.") for path in replaced)
    }
    for path_, experts in replaced.items():
        wanted |= {f"{path_}.{name}": value.shape for name, value in experts.state_dict().items()}
    _compare(op, wanted, tensors)

    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    for name, experts in replaced.items():
        put(model, name, experts)
    filled = [f"{p}.{name}." for p, e in replaced.items() for name in (e.layout.gate_up, e.layout.down)]
    meta = any(value.is_meta for value in model.state_dict().values())
    # The quantized tensors are in their places already, and `_compare` has been strict.
    rest = {name: value for name, value in tensors.items() if not name.startswith(tuple(filled))}
    model.load_state_dict(rest, strict=False, assign=meta)
    _tie(model, [names for names in groups.values() if len(names) > 1])
    return model


def _read(op: str, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file's description and all of its tensors."""
    safetensors = _safetensors(op)
    expected = "a file written by save_quantized"
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{op}: path: expected {expected}, got a damaged or foreign file {path}: {error}") from error
    try:
        described = json.loads(metadata[_KEY])
        version, modules, aliases = described["version"], described["modules"], described["aliases"]
        tensors |= {name: tensors[kept] for name, kept in aliases.items()}
        known = all(options["format"] in FORMATS for options in modules.values())
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{op}: path: expected {expected}, got {path} without its description ({error!r})") from error
    if version != _VERSION or not known:
        fail(op, "path", f"{expected} of version {_VERSION}", f"version {version} with {modules}")
    return described, tensors


def _rebuild(
    op: str, path: str, module: nn.Module, layout: ExpertsLayout, options: dict[str, Any], tensors: dict[str, Tensor]
) -> QuantizedExperts:
    """Make the quantized twin of an expert module out of the file's tensors, on the module's device."""

    def weight(name: str) -> QuantizedWeight:
        kind = WEIGHTS[options["format"]]
        try:
            made = kind(**{field.name: tensors.get(f"{path}.{name}.{field.name}") for field in fields(kind)})  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{op}: path: expected the weight {path}.{name}, got: {error}") from error
        shape = weight_shape(module, layout, name)
        if tuple(made.shape) != shape:
            fail(op, f"model: {path}.{name}", f"shape {tuple(made.shape)} as in the file", shape)
        device = getattr(module, name).device
        return made if device.type == "meta" else made.to(device)

    gate_up, down = weight(layout.gate_up), weight(layout.down)
    built = QuantizedExperts(layout, gate_up, down, *biases(module, layout), bool(options["dynamic"]))
    return built.train(module.training)


def _compare(op: str, wanted: dict[str, torch.Size], tensors: dict[str, Tensor]) -> None:
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        fail(op, "path", "the tensors of this model", f"a file without {missing[:3]} and with {unknown[:3]}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            fail(op, f"model: {name}", f"shape {tuple(tensors[name].shape)} as in the file", tuple(shape))


def _tie(model: nn.Module, groups: list[list[str]]) -> None:
    """Make parameters that were one object one object again, where loading has replaced them."""
    for first, *others in groups:
        owner, _, name = first.rpartition(".")
        try:
            parameter = getattr(model.get_submodule(owner), name)
        except AttributeError:
            continue  # A weight that is quantized now.
        if not isinstance(parameter, nn.Parameter):
            continue
        for other in others:
            owner, _, name = other.rpartition(".")
            setattr(model.get_submodule(owner), name, parameter)
