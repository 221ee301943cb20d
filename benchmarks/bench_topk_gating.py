"""topk_gating against the router of transformers' Mixtral, which computes no loss statistics."""

from __future__ import annotations

import torch
from peers import steps

from moe_kernels import topk_gating


def test_topk_gating(compare, shape, T):
    logits = [torch.randn(T, shape.E) for _ in range(8)]

    def theirs(copy):
        return steps.gating(logits[copy], shape.K)

    compare(
        {
            "ours": lambda copy: topk_gating(logits[copy], shape.K, renormalize=True),
            "eager": theirs,
            "grouped_mm": theirs,
        },
        check=False,
        nbytes=T * (shape.E * 4 + shape.K * 8),
        copies=8,
    )
