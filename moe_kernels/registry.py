"""Which backend serves an op on a device, and why the others do not."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch

from moe_kernels.native import native
from moe_kernels.preferences import preferred

# Ops with sums that a kernel might cut in another way when there are more rows; the others never depend on them.
SUMS = ("grouped_mm", "fused_experts", "grouped_mm_quantized", "fused_experts_quantized", "grouped_lora")

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

    `module` holds

    - `supports(op, *tensors) -> str | None`: None, or the reason why not;
    - `BATCH_INVARIANT`: "always", "never", or "on request", where the ops of `SUMS` take the keyword
      `batch_invariant`;
    - one submodule per op with the functions `<op>_<name>` and `<op>_backward_<name>`.

    Which backend is preferred is said in `preferences.py`.
    """

    name: str
    devices: str
    module: str

    def load(self) -> ModuleType:
        # Already imported is the rule, and every call of every op asks.
        return sys.modules.get(self.module) or importlib.import_module(self.module)


BACKENDS: tuple[Backend, ...] = (
    Backend("triton", "NVIDIA or AMD GPU", "moe_kernels.backends.triton"),
    Backend("cuda", "NVIDIA GPU", "moe_kernels.backends.cuda"),
    Backend("cpu", "CPU", "moe_kernels.backends.cpu"),
    Backend("reference", "any PyTorch device", "moe_kernels.backends.reference"),
)


_BY_NAME = {backend.name: backend for backend in BACKENDS}


def _find(name: str) -> Backend:
    if name in _BY_NAME:
        return _BY_NAME[name]
    known = ", ".join(repr(b.name) for b in BACKENDS)
    raise ValueError(f"backend: expected one of {known} or None, got {name!r}")


def why_not(name: str, op: str, *tensors: torch.Tensor | None) -> str | None:
    """Return None if the backend serves this call, else the reason."""
    try:
        module = _find(name).load()
    except ImportError as error:
        return f"not importable: {error}"
    return module.supports(op, *[t for t in tensors if t is not None])


@cache
def _function(name: str, op: str, suffix: str) -> Callable[..., Any]:
    module = importlib.import_module(f"{_find(name).module}.{op}")
    return getattr(module, f"{op}{suffix}_{name}")


def _promises(name: str, op: str) -> str | None:
    """Return None if the backend's result for a row can be made independent of the other rows, else why not."""
    if op in SUMS and _find(name).load().BATCH_INVARIANT == "never":
        return "its products are torch's, which promise no batch invariance"
    return None


def _asked_for(batch_invariant: bool | None) -> bool:
    if batch_invariant is None:
        return os.environ.get("MOE_KERNELS_BATCH_INVARIANT", "0") not in ("", "0")
    return batch_invariant


def choose(op: str, backend: str | None, *tensors: torch.Tensor | None, batch_invariant: bool | None = False) -> str:
    """Name the backend that serves `op` on these tensors.

    Args:
        op: one of `OPS`.
        backend: a name that must serve the call, or None for the environment variable `MOE_KERNELS_BACKEND`,
            and without that the first backend in order of preference that serves it.
        tensors: the op's tensor arguments; None entries are ignored.
        batch_invariant: the backend must promise that a row's bits do not depend on the other rows; None for the
            environment variable `MOE_KERNELS_BATCH_INVARIANT` (off unless it is set and not 0).

    Raises:
        ValueError: the name is unknown.
        BackendUnavailable: the forced backend does not serve the call. It never falls back.
    """
    batch_invariant = _asked_for(batch_invariant)

    def problem(name: str) -> str | None:
        reason = why_not(name, op, *tensors)
        return _promises(name, op) if reason is None and batch_invariant else reason

    forced = backend or os.environ.get("MOE_KERNELS_BACKEND")
    if forced:
        reason = problem(forced)
        if reason is None:
            return forced
        usable = [b.name for b in BACKENDS if problem(b.name) is None]
        raise BackendUnavailable(f"{op}: backend {forced!r} cannot serve this call: {reason}; usable: {usable}")
    reasons = {}
    first = tensors[0] if tensors and tensors[0] is not None else next((t for t in tensors if t is not None), None)
    for name in preferred(op, first):
        reasons[name] = problem(name)
        if reasons[name] is None:
            return name
    raise BackendUnavailable(f"{op}: no backend serves this call: {reasons}")


def unforced_on_cpu(op: str, suffix: str) -> Callable[..., Any] | None:
    """Return the CPU backend's `<op><suffix>_cpu` unless another backend is asked for, or it cannot work here.

    For arguments that are known to be ordinary CPU tensors: less than what `choose` has to look at.
    """
    if native()[0] is None or os.environ.get("MOE_KERNELS_BACKEND"):
        return None
    return _function("cpu", op, suffix)


def kernel(
    op: str,
    backend: str | None,
    *tensors: torch.Tensor | None,
    backward: bool = False,
    batch_invariant: bool | None = False,
) -> Callable[..., Any]:
    """Return the chosen backend's function for `op` (see `choose`)."""
    batch_invariant = _asked_for(batch_invariant)
    name = choose(op, backend, *tensors, batch_invariant=batch_invariant)
    call = _function(name, op, "_backward" if backward else "")
    if batch_invariant and op in SUMS and _find(name).load().BATCH_INVARIANT == "on request":
        call = partial(call, batch_invariant=True)
    if name == "triton":
        first = next((t for t in tensors if t is not None), None)
        return partial(_launch, op, None if first is None or not first.is_cuda else first.device, call)
    return call


def _launch(op: str, device: torch.device | None, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call with the device as the current one, which is where Triton launches, and name the op where that fails."""
    try:
        if device is None or device.index == torch.cuda.current_device():
            return call(*arguments, **options)
        with torch.cuda.device(device):
            return call(*arguments, **options)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise RuntimeError(f"{op}: backend 'triton': {type(error).__name__}: {error}") from error


def available_backends() -> dict[str, str | None]:
    """Map each backend's name to None if it works on this machine, else to the reason why not.

    The probe is a float32 call on the device that the backend is for.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, str | None] = {}
    for entry in BACKENDS:
        probe = torch.empty(0, device=device if "GPU" in entry.devices else "cpu")
        reasons = {op: why_not(entry.name, op, probe) for op in OPS}
        served = [op for op, reason in reasons.items() if reason is None]
        found[entry.name] = None if served else next(iter(reasons.values()))
    return found
