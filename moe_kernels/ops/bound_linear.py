"""A linear layer for a batch that is continued token by token: weights and adapters are looked up once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moe_kernels.native import core, native, view, view_or_none
from moe_kernels.ops.direct import plain_call
from moe_kernels.ops.prepared_lora import PreparedLora
from moe_kernels.ops.registration import weight_dtype


def can_bind(*weights: Tensor) -> bool:
    """Whether these are ordinary CPU tensors that the native core reads, and nothing else wants to see the calls.

    Gradients must not be recorded: the rows that come may have some.
    """
    first = weights[0]
    return (
        not torch.is_grad_enabled()
        and all(weight.is_cpu and weight.dtype == first.dtype and weight.is_contiguous() for weight in weights)
        and first.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and native()[0] is not None
        and os.environ.get("MOE_KERNELS_BACKEND", "") in ("", "cpu")
        and plain_call(*weights)
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a module is called for its own `forward` alone: nobody has put a hook or another forward on it."""
    everywhere: Any = nn.modules.module
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in vars(module)
        or everywhere._global_forward_hooks
        or everywhere._global_forward_pre_hooks
    )


class BoundLinear:
    """x · Wᵀ + bias, and the deltas of adapters, as `grouped_mm` and `grouped_lora_` compute them.

    What is looked up is the memory that the tensors have when this is made: it sees changes in place, and not what a
    parameter is given instead (`.data = `, `.to()`).
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        rows: int,
        adapters: Sequence[tuple[PreparedLora, Tensor | None]] = (),
    ) -> None:
        """Looks the tensors up; `can_bind` must hold for all of them.

        Args:
            weight: (O, H).
            bias: (O), weight's dtype, or None.
            rows: N.
            adapters: of N rows, each with (N) factors of its delta or None for 1.

        Raises:
            ValueError: adapters of other sizes.
        """
        outputs, inputs = weight.shape
        for lora, _ in adapters:
            sizes = len(lora.groups), lora.A.shape[2], lora.B.shape[1]
            if sizes != (rows, inputs, outputs):
                raise ValueError(f"adapters: expected (rows, in, out) {(rows, inputs, outputs)}, got {sizes}")
        self._takes, self._gives = (rows, inputs), (rows, outputs)
        self._dtype = weight.dtype
        offsets = torch.tensor([0, rows], dtype=torch.int32)
        # Of their own: a parameter may be given other memory, and its own go, while this is used.
        matrix, row = weight.detach()[None], None if bias is None else bias.detach()[None]
        self._kept = [matrix, row, offsets]
        self._weight, self._offsets, self._bias = view(matrix), view(offsets), view_or_none(row)
        self._adapters = [(self._views(lora), factors) for lora, factors in adapters]
        self._product, self._delta = core().grouped_mm, core().grouped_lora

    def _views(self, lora: PreparedLora) -> tuple[object, ...]:
        scaling = lora.scaling.to(weight_dtype(lora.A)).contiguous()
        tensors = lora.A.detach(), lora.B.detach(), lora.groups.contiguous(), scaling, lora.ranks
        self._kept += tensors
        return tuple(view_or_none(tensor) for tensor in tensors)

    def __call__(self, x: Tensor) -> Tensor:
        """Returns (N, O) for x (N, H) of the weight's dtype.

        Raises:
            ValueError: another shape or dtype.
        """
        if x.shape != self._takes or x.dtype != self._dtype:
            raise ValueError(f"x: expected {self._takes} {self._dtype}, got {tuple(x.shape)} {x.dtype}")
        x = x.contiguous()
        out = x.new_empty(self._gives)
        given, result, threads = view(x), view(out), torch.get_num_threads()
        self._product(given, self._weight, self._offsets, False, None, self._bias, None, None, None, result, threads)
        for adapter, factors in self._adapters:
            # The delta is linear in its input, so a row's factor goes there.
            scaled = x if factors is None else x * factors[:, None].to(x.dtype)
            self._delta(given if factors is None else view(scaled), *adapter, result, result, threads)
        return out
