"""expert_parallel: rows go to the ranks that own their experts, and their results come back.

Letters: see `moe_kernels.parallel`; N = T·K.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from moe_kernels.ops.permute import permute
from moe_kernels.ops.registration import needs_grad, under_autocast, weight_dtype
from moe_kernels.ops.route import RoutingPlan, route
from moe_kernels.ops.unpermute import unpermute
from moe_kernels.parallel.exchange import exchange_with_gradient
from moe_kernels.parallel.shards import OP, ExpertShards
from moe_kernels.validation import fail

# (rows (M, H), indices (M, 1) of local experts, weights (M, 1)) to (M, H).
LocalExperts = Callable[[Tensor, Tensor, Tensor], Tensor]

# What a rank tells the others beside its counts. Their sums over the ranks decide what everybody does in backward.
X_NEEDS_GRAD, ANY_NEEDS_GRAD, GRAD_MODE = range(3)


class _Traffic(NamedTuple):
    """Rows to and from each rank (W numbers each), those from each rank for each local expert (W, E of the rank), and
    the flags of all ranks (W, 3)."""

    sent: list[int]
    received: list[int]
    counts: Tensor
    flags: list[list[int]]


def _count(plan: RoutingPlan, flags: list[bool], shards: ExpertShards) -> _Traffic:
    """Tell each rank how many rows it gets for each of its experts.

    The host must know the sizes of a collective's parts: this is where it waits for the device, once in a forward.
    """
    mine = torch.tensor(flags, device=plan.offsets.device).expand(shards.size, -1)
    # The parts have equal sizes: each rank's experts padded to the largest number, and the flags.
    outgoing = torch.cat((shards.by_owner(plan.offsets.diff()), mine), 1).long()
    incoming = torch.empty_like(outgoing)
    dist.all_to_all_single(incoming, outgoing, group=shards.group)
    counts = incoming[:, : shards.num_local]
    sent = outgoing[:, : shards.most].sum(1)
    host = torch.cat((sent[:, None], counts.sum(1)[:, None], incoming[:, shards.most :]), 1).tolist()
    return _Traffic([row[0] for row in host], [row[1] for row in host], counts, [row[2:] for row in host])


def _check_grad_mode(traffic: _Traffic, shards: ExpertShards) -> None:
    modes = [bool(flags[GRAD_MODE]) for flags in traffic.flags]
    if any(modes) != all(modes):
        ranks = [r for r, mode in enumerate(modes) if not mode]
        fail(OP, "grad mode", "the same on every rank of process_group", f"no gradients on ranks {ranks} only")


def expert_parallel(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    experts: LocalExperts,
    shards: ExpertShards,
    *,
    parameters: tuple[Tensor, ...] = (),
    backend: str | None = None,
) -> Tensor:
    """Compute a Mixture-of-Experts block whose experts are spread over the ranks of a process group.

    It is a collective, and so is its backward: every rank calls it, also a rank without tokens (T = 0), and either all
    of them call backward or none. Tokens are this rank's own; T may differ from rank to rank. Rows are sent sorted by
    expert, which sorts them by owner too, in x's dtype (autocast's, where that is on); routing weights stay at home and
    are applied to the rows that come back, in float32 and in slot order.

    The counts of rows go first, and the host reads them: no CUDA graph can hold this call, and torch.compile breaks its
    graph here.

    Args:
        x: (T, H) floating.
        indices: (T, K) integers, of all E experts; E and more are sentinels, which are not sent.
        weights: (T, K) floating.
        experts: this rank's experts; called with the rows (M, H) that came, the local experts (M, 1) int32 and weights
            (M, 1) of ones, where M > 0 or this rank has experts. Gives (M, H).
        shards: who owns which experts.
        parameters: this rank's tensors that `experts` reads; asked only whether they need a gradient.
        backend: a backend's name that must serve `route`, `permute` and `unpermute`.

    Returns:
        (T, H) in x's dtype (autocast's, where that is on). Gradients go to x and weights of this rank; this rank's
        experts get theirs from the tokens of all ranks, summed.

    Raises:
        ValueError, TypeError: the ranks do not fit together, or the group has no backend for x's device.
        RuntimeError, torch.distributed.DistBackendError: another rank is gone, or did not come within the timeout of
            the group.
    """
    return _outside_graphs()(x, indices, weights, experts, shards, parameters, backend)


@cache
def _outside_graphs() -> Callable[..., Tensor]:
    # Not a decorator of `_expert_parallel`: as that, it would import torch's compiler together with this package.
    return torch.compiler.disable(_expert_parallel)


def _expert_parallel(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    experts: LocalExperts,
    shards: ExpertShards,
    parameters: tuple[Tensor, ...],
    backend: str | None,
) -> Tensor:
    shards.check_device(x)
    shards.check_agreement(x, indices.shape[1])
    x = under_autocast(x)[0]  # type: ignore[assignment]
    plan = route(indices, shards.num_experts, backend=backend)
    flags = [needs_grad(x), needs_grad(x, weights, *parameters), torch.is_grad_enabled()]
    traffic = _count(plan, flags, shards)
    _check_grad_mode(traffic, shards)
    x_needs, any_needs = (any(f[flag] for f in traffic.flags) for flag in (X_NEEDS_GRAD, ANY_NEEDS_GRAD))

    sent, received = traffic.sent, traffic.received
    valid = sum(sent)
    rows_NH = permute(x, plan, backend=backend)
    rows_MH = exchange_with_gradient(rows_NH[:valid], sent, received, shards.group, x_needs)
    if shards.num_local:
        ones = rows_MH.new_ones(rows_MH.shape[0], 1, dtype=weight_dtype(rows_MH))
        rows_MH = experts(rows_MH, _local_experts(traffic), ones)
    rows_NH = exchange_with_gradient(rows_MH, received, sent, shards.group, any_needs)
    # Slots without an expert sort last and were not sent.
    rows_NH = F.pad(rows_NH, (0, 0, 0, plan.row_token.shape[0] - valid))
    return unpermute(rows_NH, plan, weights, backend=backend)


def _local_experts(traffic: _Traffic) -> Tensor:
    """Name the local expert of each row that came, (M, 1) int32: by rank, and within a rank by expert."""
    W, local = traffic.counts.shape
    each = torch.arange(local, dtype=torch.int32, device=traffic.counts.device).repeat(W)
    return each.repeat_interleave(traffic.counts.reshape(-1), output_size=sum(traffic.received))[:, None]
