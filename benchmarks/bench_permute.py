"""permute and unpermute against transformers' gather, index_add (eager) and inverse gather (grouped_mm)."""

from __future__ import annotations

import torch
from measure import copies_for
from peers import steps

from moe_kernels import permute, route, unpermute
from moe_kernels.testing import random_indices


def _plan(shape, T):
    indices = random_indices(T, shape.E, shape.K)
    plan = route(indices, shape.E)
    return plan, plan.offsets.tolist(), plan.row_token.long(), torch.argsort(indices.reshape(-1), stable=True)


def test_permute(compare, shape, T, dtype):
    size = T * shape.H * dtype.itemsize
    copies = min(copies_for(size * (1 + shape.K)), 64)
    x = [torch.randn(T, shape.H).to(dtype) for _ in range(copies)]
    plan, bounds, tokens, order = _plan(shape, T)
    groups = [tokens[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
    compare(
        {
            "ours": lambda copy: permute(x[copy], plan),
            "eager": lambda copy: steps.permute_eager(x[copy], groups),
            "grouped_mm": lambda copy: steps.permute_grouped(x[copy], order, shape.K),
        },
        check=False,
        nbytes=size * (1 + shape.K),
        dtype=dtype,
        copies=copies,
    )


def test_unpermute(compare, shape, T, dtype):
    size = T * shape.H * dtype.itemsize
    copies = min(copies_for(size * (1 + shape.K)), 64)
    rows = [torch.randn(T * shape.K, shape.H).to(dtype) for _ in range(copies)]
    weights = torch.rand(T, shape.K)
    plan, bounds, tokens, order = _plan(shape, T)
    weights_N = weights.reshape(-1)[order]
    compare(
        {
            "ours": lambda copy: unpermute(rows[copy], plan, weights),
            "eager": lambda copy: steps.unpermute_eager(rows[copy], bounds, tokens, weights_N, T),
            "grouped_mm": lambda copy: steps.unpermute_grouped(rows[copy], order, weights_N, T, shape.K),
        },
        nbytes=size * (1 + shape.K),
        dtype=dtype,
        copies=copies,
    )
