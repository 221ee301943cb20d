"""Calls that need nothing of PyTorch's dispatcher, which takes longer than the smallest of the ops do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_KEY = torch._C.DispatchKey


def _keys(*keys: Any) -> int:
    found = torch._C.DispatchKeySet(keys[0])
    for key in keys[1:]:
        found = found | torch._C.DispatchKeySet(key)
    return found.raw_repr()


# What the dispatcher would look at in a CPU tensor of memory as it lies, outside and inside of inference mode. Whatever
# else a tensor is (a wrapper, negated, sparse, on another device) gives it other keys.
_ORDINARY_TENSORS = (
    _keys(_KEY.CPU, _KEY.ADInplaceOrView, _KEY.AutogradCPU, _KEY.AutocastCPU),
    _keys(_KEY.CPU, _KEY.AutocastCPU),
)
# And in the thread: no mode, transform or tracer has put itself there.
_ORDINARY_THREADS = (_keys(_KEY.BackendSelect, _KEY.ADInplaceOrView), _keys(_KEY.BackendSelect))


def nobody_listens() -> bool:
    """Whether no mode, transform, tracer, profiler or forward-mode derivative wants to see the op."""
    return (
        torch._C._dispatch_tls_local_include_set().raw_repr() in _ORDINARY_THREADS
        and not torch._C._len_torch_function_stack()
        and not torch.autograd._profiler_enabled()
        and forward_ad._current_level < 0
    )


_TENSORS = (Tensor, torch.nn.Parameter)
_NUMBERS = frozenset((type(None), int, float, bool, str))


def _all_plain(values: Iterable[Any], grad: bool) -> bool:
    """Whether the tensors among the values are ordinary ones on the CPU without a gradient to record."""
    for value in values:
        kind = type(value)
        if kind in _TENSORS:
            if torch._C._dispatch_keys(value).raw_repr() not in _ORDINARY_TENSORS or (grad and value.requires_grad):
                return False
        elif kind not in _NUMBERS and not (kind in (list, tuple) and _all_plain(value, grad)):
            return False
    return True


def plain_call(*arguments: Any) -> bool:
    """Whether nothing lies between a public function and its implementation: as in `direct`, and no autocast."""
    # Asked first, because torch.compile takes it for a constant and never sees the rest.
    return (
        not torch.compiler.is_compiling()
        and nobody_listens()
        and not torch._C._is_any_autocast_enabled()
        and _all_plain(arguments, torch.is_grad_enabled())
    )


def direct(op: Callable[..., Any], implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does as `op` does, and calls its implementation at once where nothing lies between.

    That is so in eager mode for CPU tensors, if no gradient is recorded. Elsewhere the registered op is called. A
    kernel that somebody else has registered for the op is met there only.
    """

    def call(*arguments: Any) -> Any:
        # Asked first, because torch.compile takes it for a constant and never sees the rest.
        if torch.compiler.is_compiling() or not nobody_listens():
            return op(*arguments)
        if _all_plain(arguments, torch.is_grad_enabled()):
            return implementation(*arguments)
        return op(*arguments)

    return call
