"""The one place that imports the native core `moe_kernels._C`, and how it sees tensors."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from moe_kernels.threads import borrow_torch_threads

_module: ModuleType | None
_reason: str | None
try:
    # By name: an import statement would put the package's __init__ into a circle, as a type checker sees it.
    _module, _reason = import_module("moe_kernels._C"), None
except ImportError as error:
    _module, _reason = None, f"the native core moe_kernels._C cannot be imported: {error}"

if _module is not None:
    borrow_torch_threads(_module)

# The codes of csrc/common/view.h.
DTYPE_CODES: dict[torch.dtype, int] = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.int32: 3,
    torch.int64: 4,
    torch.bool: 5,
    torch.uint8: 6,
    torch.int8: 7,
}


# Several are made in each call of an op, so that even looking the name up shows.
_view: Any = getattr(_module, "View", None)


def native() -> tuple[ModuleType | None, str | None]:
    """Return the native module and None, or None and the reason why there is none."""
    return _module, _reason


def core() -> Any:
    """Return the native module; call it only where `native` has said that there is one."""
    assert _module is not None, _reason
    return _module


def view(tensor: Tensor) -> Any:
    """Describe a tensor to the native core: address, shape, strides, dtype.

    The view does not keep the tensor alive.
    """
    return _view(tensor.data_ptr(), tensor.shape, tensor.stride(), DTYPE_CODES[tensor.dtype])


def view_or_none(tensor: Tensor | None) -> Any:
    """Like `view` for an argument that may be absent."""
    return None if tensor is None else view(tensor)
