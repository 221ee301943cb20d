"""grouped_mm against a loop of F.linear (eager) and torch's grouped_mm, weights rotated through memory."""

from __future__ import annotations

import torch
from measure import copies_for
from peers import steps

from moe_kernels import grouped_mm, route
from moe_kernels.testing import random_indices


def test_grouped_mm(compare, shape, T, dtype):
    E, K, H, I = shape
    size = E * 2 * I * H * dtype.itemsize
    copies = copies_for(size)
    weights = [torch.randn(E, 2 * I, H).mul_(H**-0.5).to(dtype) for _ in range(copies)]
    plan = route(random_indices(T, E, K), E)
    bounds = plan.offsets.tolist()
    x = torch.randn(T * K, H).to(dtype)
    hit = sum(b > a for a, b in zip(bounds, bounds[1:], strict=False))
    compare(
        {
            "ours": lambda copy: grouped_mm(x, weights[copy], plan.offsets),
            "eager": lambda copy: steps.grouped_mm_eager(x, weights[copy], bounds),
            "grouped_mm": lambda copy: steps.grouped_mm_torch(x, weights[copy], plan.offsets[1:]),
        },
        nbytes=size * hit / E,
        flops=2 * T * K * 2 * I * H,
        dtype=dtype,
        copies=copies,
    )
