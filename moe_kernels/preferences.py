"""Which backend is asked first, by op, kind of device and number of rows: the one table of such choices.

A row of the table stands on a measurement, which is written beside it. Where nothing was measured, the order below
holds. A backend that does not serve a call is passed over, so an order names more than can be used anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class Preference:
    """One measured choice.

    `architecture` is a compute capability such as "9.0", or the name of an AMD one such as "gfx942". `rows` are the
    numbers of rows of the op's first tensor for which it holds.
    """

    op: str
    architecture: str
    rows: range
    order: tuple[str, ...]
    measured: str


# `scripts/gpu_check.sh` prints what belongs here. No GPU has been measured yet.
MEASURED: tuple[Preference, ...] = ()

# The CUDA kernels come after the reference, so that they run only where they are asked for by name: until a GPU has
# run their tests, nobody is to meet them unasked. The Triton kernels pass the same tests in Triton's interpreter.
UNMEASURED = ("triton", "cpu", "reference", "cuda")
# In the interpreter, Triton serves CPU tensors too, far slower than everything else.
ON_CPU = ("cpu", "reference", "triton")


@cache
def architecture(device: int) -> str:
    """Name a GPU's architecture: "9.0", or "gfx942" where torch is built for ROCm."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":")[0]
    return f"{properties.major}.{properties.minor}"


def preferred(op: str, tensor: torch.Tensor | None) -> tuple[str, ...]:
    """Return the backends' names in the order in which they are to be asked.

    Args:
        op: one of `registry.OPS`.
        tensor: the op's first tensor argument.
    """
    if tensor is None or not tensor.is_cuda:
        return ON_CPU
    if MEASURED:
        kind, rows = architecture(tensor.device.index), tensor.shape[0]
        for row in MEASURED:
            if row.op == op and row.architecture == kind and rows in row.rows:
                return row.order
    return UNMEASURED
