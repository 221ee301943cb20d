"""fused_experts against transformers' eager and grouped_mm experts, weights rotated through memory."""

from __future__ import annotations

import peers
import torch
from measure import copies_for

from moe_kernels import fused_experts
from moe_kernels.testing import random_indices


def test_fused_experts(compare, shape, T, dtype):
    E, K, H, I = shape
    size = E * 3 * I * H * dtype.itemsize
    copies = copies_for(size)
    weights = [
        (torch.randn(E, 2 * I, H).mul_(H**-0.5).to(dtype), torch.randn(E, H, I).mul_(I**-0.5).to(dtype))
        for _ in range(copies)
    ]
    indices = random_indices(T, E, K)
    wide = indices.long()
    routing = torch.softmax(torch.randn(T, K), 1)
    x = torch.randn(T, H).to(dtype)
    eager = [peers.mixtral_experts(*w, "eager") for w in weights]
    grouped = [peers.mixtral_experts(*w, "grouped_mm") for w in weights]
    compare(
        lambda copy: fused_experts(x, indices, routing, *weights[copy]),
        lambda copy: eager[copy](x, wide, routing.to(dtype)),
        lambda copy: grouped[copy](x, wide, routing.to(dtype)),
        nbytes=size * len(indices.unique()) / E,
        flops=2 * T * K * 3 * I * H,
        dtype=dtype,
        copies=copies,
        rounds=5,
    )
