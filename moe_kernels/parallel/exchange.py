"""All-to-all of rows, with a gradient: the collective of torch.distributed, and back the other way."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def exchange(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    """Send the first sent[0] rows to rank 0, the next sent[1] to rank 1, and so on.

    Args:
        rows: (sum(sent), H).
        sent, received: rows to and from each rank, W numbers.
        group: ProcessGroup.

    Returns:
        (sum(received), H), in the order of the ranks.
    """
    out = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, anchor: Tensor | None, sent: list[int], received: list[int], group: Any
    ) -> Tensor:
        ctx.way = (sent, received, group)
        return exchange(rows, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        sent, received, group = ctx.way
        return exchange(grad, received, sent, group), None, None, None, None


def exchange_with_gradient(rows: Tensor, sent: list[int], received: list[int], group: Any, anchored: bool) -> Tensor:
    """Like `exchange`, differentiable by autograd.

    Args:
        rows, sent, received, group: see `exchange`.
        anchored: some rank needs a gradient through this exchange. Its backward is a collective too, so then every rank
            must take part in it, whether its own rows need a gradient or not.
    """
    anchor = torch.empty(0, device=rows.device, requires_grad=True) if anchored else None
    return _Exchange.apply(rows, anchor, sent, received, group)
