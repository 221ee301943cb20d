"""The expert MLP, forward, against transformers, vLLM and SGLang, with the weights rotated through memory."""

from __future__ import annotations

from moe_kernels import fused_experts

# T of a quick look, and of the table.
COUNTS = (1, 16, 64), (1, 4, 16, 64, 256, 1024, 4096)


def test_fused_experts(compare, model, T):
    tokens = model.tokens(T)

    def ours(copy, given):
        return fused_experts(given.x, given.indices, given.routing, *model.weights[copy])

    compare(
        {
            "ours": model.arm("ours", lambda: ours, tokens),
            **model.transformers(tokens),
            **model.peers(tokens),
        },
        nbytes=model.expert_bytes * len(tokens[0].indices.unique()),
        flops=model.operations(T),
        dtype=model.dtype,
        shape=model.name,
        sizes=model.shape,
    )
