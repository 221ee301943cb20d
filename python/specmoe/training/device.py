"""Which device a run uses."""

from __future__ import annotations

import importlib.util

import torch

from .settings import DEVICES


def usable_devices() -> dict[str, str | None]:
    """Returns every kind of device with None where it can be used here, else the reason why not."""
    mps = getattr(torch.backends, "mps", None)
    has_directml = importlib.util.find_spec("torch_directml") is not None
    return {
        "cuda": None if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA or ROCm GPU",
        "mps": None if mps is not None and mps.is_available() else "torch sees no Apple GPU",
        "directml": None if has_directml else "the package torch-directml is not installed",
        "cpu": None,
    }


def choose_device(name: str) -> str:
    """Returns the kind of device to train on.

    Args:
        name: one of `DEVICES`; "auto" takes the first usable one of cuda, mps, directml, cpu.

    Returns:
        "cuda", "mps", "directml" or "cpu".

    Raises:
        ValueError: the name is unknown or the device cannot be used; the message lists those that can.
    """
    reasons = usable_devices()
    usable = [kind for kind, reason in reasons.items() if reason is None]
    if name == "auto":
        return usable[0]
    if name not in reasons:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    if reasons[name] is not None:
        raise ValueError(f"device: {name}: {reasons[name]}; usable here: {', '.join(usable)}")
    return name


def torch_device(kind: str) -> torch.device:
    """Returns torch's device for a kind that `choose_device` returned."""
    if kind == "directml":
        import torch_directml

        return torch_directml.device()
    return torch.device(kind)
