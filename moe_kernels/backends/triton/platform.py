"""What Triton runs on here: its version, the interpreter, the GPU's size."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

OLDEST = (3, 4)


@functools.cache
def problem() -> str | None:
    """Return None if Triton imports and has something to run on, else the reason."""
    try:
        import triton
    except ImportError as error:
        return f"triton does not import: {error}"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST:
        return f"needs triton {'.'.join(map(str, OLDEST))} or newer, got {triton.__version__}"
    if not interpreted() and not torch.cuda.is_available():
        return "no GPU (TRITON_INTERPRET=1 runs the kernels on the CPU, slowly)"
    return None


@functools.cache
def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter: decided once, when they are first imported."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


@dataclass(frozen=True)
class Device:
    """What the choice of tiles and grids asks about a GPU.

    `architecture` is the compute capability times ten on NVIDIA (90 for an H100), 0 on AMD and in the interpreter.
    """

    architecture: int
    processors: int
    shared_bytes: int
    amd: bool


# Small enough that persistent loops are taken more than once in tests.
INTERPRETER = Device(architecture=0, processors=4, shared_bytes=1 << 20, amd=False)


@functools.cache
def gpu(index: int) -> Device:
    from triton.runtime import driver

    found = driver.active.utils.get_device_properties(index)
    amd = torch.version.hip is not None
    major, minor = torch.cuda.get_device_capability(index)
    architecture = 0 if amd else 10 * major + minor
    return Device(architecture, found["multiprocessor_count"], found["max_shared_mem"], amd)


def device_of(tensor: Tensor) -> Device:
    """Describe the device that a kernel on this tensor runs on."""
    return INTERPRETER if interpreted() else gpu(tensor.device.index)
