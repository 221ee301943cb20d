"""The expert MLP over int8 and NF4 weights, against the same over bfloat16 and SGLang's int8."""

from __future__ import annotations

import copy

import pytest
from measure import copies_for

from moe_kernels import fused_experts

quantized_weights = pytest.importorskip("moe_kernels.quantized_weights", reason="no quantized weights in this build")

COUNTS = (1, 64), (1, 16, 64, 256, 1024)
# "dynamic": the activations are quantized as well, for each token.
FORMATS = ("int8", "int8 dynamic", "NF4")


def _expert_bytes(shape, kind: str) -> float:
    elements = 3 * shape.I * shape.H
    # A scale for each row of int8, for each block of 64 of NF4.
    return elements * (0.5 + 4 / 64) if kind == "NF4" else elements + 4 * (2 * shape.I + shape.H)


@pytest.mark.parametrize("kind", FORMATS)
def test_quantized_experts(compare, model, T, kind):
    tokens = model.tokens(T)
    dynamic = kind == "int8 dynamic"
    quantize = quantized_weights.quantize_nf4 if kind == "NF4" else quantized_weights.quantize_int8
    expert_bytes = _expert_bytes(model.shape, kind)
    copies = copies_for(expert_bytes * model.shape.E)

    def prepare():
        first = [quantize(weight) for weight in model.weights[0]]
        weights = [first, *(copy.deepcopy(first) for _ in range(copies - 1))]
        return lambda number, given: fused_experts(
            given.x, given.indices, given.routing, *weights[number], dynamic=dynamic
        )

    def plain(number, given):
        return fused_experts(given.x, given.indices, given.routing, *model.weights[number])

    compare(
        {
            "ours": model.arm(f"ours {kind}", prepare, tokens, copies, must=True),
            "ours unquantized": model.arm("ours", lambda: plain, tokens),
            "SGLang int8": model.library("SGLang int8", tokens) if dynamic else None,
        },
        nbytes=expert_bytes * len(tokens[0].indices.unique()),
        flops=model.operations(T),
        dtype=model.dtype,
        kind="int8" if dynamic else None,
        op=f"fused_experts {kind}",
        shape=model.name,
        sizes=model.shape,
    )
