"""The compiled module `moe_kernels._cuda`: found, loaded onto a GPU, or the reason why not."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from moe_kernels.build_record import reason_not_built
from moe_kernels.native import DTYPE_CODES


@functools.cache
def module() -> Any:
    """Import `moe_kernels._cuda` at first use.

    Raises:
        ImportError: it was not built, or does not load.
    """
    return importlib.import_module("moe_kernels._cuda")


@functools.cache
def module_problem() -> str | None:
    """Return None if CUDA tensors exist here and the module imports, else the reason."""
    if torch.version.cuda is None:
        return f"no CUDA device: torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device"
    try:
        module()
    except ModuleNotFoundError:
        return f"moe_kernels._cuda is not built: {reason_not_built('cuda')}"
    except ImportError as error:
        return f"moe_kernels._cuda does not load: {error}"
    return None


@functools.cache
def device_problem(device: int) -> str | None:
    """Load every kernel onto a device, once: none must be loaded later, while a CUDA graph is captured."""
    try:
        module().load(device)
    except RuntimeError as error:
        return f"moe_kernels._cuda cannot run on {torch.cuda.get_device_name(device)}: {error}"
    return None


def view(tensor: Tensor) -> Any:
    """Describe a tensor to the native code; the caller keeps it alive for the call."""
    return module().View(tensor.data_ptr(), list(tensor.shape), list(tensor.stride()), DTYPE_CODES[tensor.dtype])


def optional_view(tensor: Tensor | None) -> Any:
    return None if tensor is None else view(tensor)


def launch_arguments(tensor: Tensor) -> tuple[int, int]:
    """Return the tensor's device index and the handle of the stream that torch is using on it."""
    return tensor.get_device(), torch.cuda.current_stream(tensor.device).cuda_stream


def with_unit_columns(tensor: Tensor) -> Tensor:
    """Return the tensor, copied only if the elements of a row do not lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
