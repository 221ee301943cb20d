"""Which backend serves an op on a device, and why the others do not."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import torch

OPS = (
    "topk_gating",
    "route",
    "permute",
    "unpermute",
    "grouped_mm",
    "fused_experts",
    "grouped_mm_quantized",
    "fused_experts_quantized",
    "grouped_lora",
)


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot serve the call."""


@dataclass(frozen=True)
class Backend:
    """One row of the registry.

    `module` holds `supports(op, *tensors) -> str | None` (None, or the reason why not) and one submodule per op
    with the functions `<op>_<name>` and `<op>_backward_<name>`. An experimental backend is used only when forced.
    """

    name: str
    devices: str
    module: str

    def load(self) -> ModuleType:
        # Already imported is the rule, and every call of every op asks.
        return sys.modules.get(self.module) or importlib.import_module(self.module)


# In order of preference.
BACKENDS: tuple[Backend, ...] = (
    Backend("cuda", "NVIDIA GPU", "moe_kernels.backends.cuda"),
    Backend("cpu", "CPU", "moe_kernels.backends.cpu"),
    Backend("reference", "any PyTorch device", "moe_kernels.backends.reference"),
)


def _find(name: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    known = ", ".join(repr(b.name) for b in BACKENDS)
    raise ValueError(f"backend: expected one of {known} or None, got {name!r}")


def why_not(name: str, op: str, *tensors: torch.Tensor | None) -> str | None:
    """Return None if the backend serves this call, else the reason."""
    try:
        module = _find(name).load()
    except ImportError as error:
        return f"not importable: {error}"
    return module.supports(op, *(t for t in tensors if t is not None))


@cache
def _function(name: str, op: str, suffix: str) -> Callable[..., Any]:
    module = importlib.import_module(f"{_find(name).module}.{op}")
    return getattr(module, f"{op}{suffix}_{name}")


@cache
def _is_experimental(name: str) -> bool:
    return bool(getattr(_find(name).load(), "EXPERIMENTAL", False))


def choose(op: str, backend: str | None, *tensors: torch.Tensor | None) -> str:
    """Name the backend that serves `op` on these tensors.

    Args:
        op: one of `OPS`.
        backend: a name that must serve the call, or None for the environment variable `MOE_KERNELS_BACKEND`,
            and without that the first backend in order of preference that serves it.
        tensors: the op's tensor arguments; None entries are ignored.

    Raises:
        ValueError: the name is unknown.
        BackendUnavailable: the forced backend does not serve the call. It never falls back.
    """
    forced = backend or os.environ.get("MOE_KERNELS_BACKEND")
    if forced:
        reason = why_not(forced, op, *tensors)
        if reason is None:
            return forced
        usable = [b.name for b in BACKENDS if why_not(b.name, op, *tensors) is None]
        raise BackendUnavailable(f"{op}: backend {forced!r} cannot serve this call: {reason}; usable: {usable}")
    for entry in BACKENDS:
        if why_not(entry.name, op, *tensors) is None and not _is_experimental(entry.name):
            return entry.name
    raise BackendUnavailable(f"{op}: no backend serves this call")


def kernel(op: str, backend: str | None, *tensors: torch.Tensor | None, backward: bool = False) -> Callable[..., Any]:
    """Return the chosen backend's function for `op` (see `choose`)."""
    return _function(choose(op, backend, *tensors), op, "_backward" if backward else "")


def available_backends() -> dict[str, str | None]:
    """Map each backend's name to None if it works on this machine, else to the reason why not.

    The probe is a float32 call on the device that the backend is for.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, str | None] = {}
    for entry in BACKENDS:
        probe = torch.empty(0, device=device if entry.name == "cuda" else "cpu")
        reasons = {op: why_not(entry.name, op, probe) for op in OPS}
        served = [op for op, reason in reasons.items() if reason is None]
        found[entry.name] = None if served else next(iter(reasons.values()))
    return found
