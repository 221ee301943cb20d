"""`grouped_lora_` for a batch that is continued token by token: what stays the same is looked at once."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels import validation
from moe_kernels.ops.direct import plain_call
from moe_kernels.ops.grouped_lora import grouped_lora_
from moe_kernels.ops.registration import weight_dtype
from moe_kernels.registry import kernel


class PreparedLora:
    """Adapters and the groups of a batch's rows, checked; a call then takes half the time of `grouped_lora_`.

    Attributes:
        A, B, groups, scaling, ranks: as they were given; their values must not change while this is used.
    """

    def __init__(self, A: Tensor, B: Tensor, groups: Tensor, scaling: Tensor, *, ranks: Tensor | None = None) -> None:
        """Checks the arguments of `grouped_lora_` that all calls share.

        Args:
            A: (G, R, H).
            B: (G, O, R), A's dtype.
            groups: (N) int32 or int64; a group of G or more is a sentinel: no delta.
            scaling: (G) float32.
            ranks: (G) int32 at most R, None for R.

        Raises:
            ValueError, TypeError: an argument does not fit, or a group is negative (seen on CPU tensors).
        """
        like = A.new_empty(1, A.shape[-1]).expand(len(groups), -1)
        validation.check_grouped_lora(like, A, B, groups, scaling, ranks)
        self.A, self.B, self.groups, self.scaling, self.ranks = A, B, groups, scaling, ranks
        self._kernel = kernel("grouped_lora", None, like, A, B, batch_invariant=None) if A.is_cpu else None
        self._scaling = scaling.to(weight_dtype(like))
        self._takes, self._gives = (len(groups), A.shape[2]), (len(groups), B.shape[1])

    def add_(self, base: Tensor, x: Tensor) -> Tensor:
        """Adds the deltas of x (N, H) to base (N, O) in place and returns it, as `grouped_lora_` does."""
        A, B = self.A, self.B
        fits = x.shape == self._takes and base.shape == self._gives and x.dtype == base.dtype == A.dtype
        if self._kernel is None or not fits or not plain_call(base, x, A, B):
            return grouped_lora_(base, x, A, B, self.groups, self.scaling, ranks=self.ranks)
        self._kernel(x, A, B, self.groups, self._scaling, self.ranks, base)
        # Native code writes past torch: without this, autograd would not see that a saved base has changed.
        torch.autograd.graph.increment_version(base)
        return base
