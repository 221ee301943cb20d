"""The expert MLP over int8 and NF4 weights, against the same over bfloat16 and SGLang's int8."""

from __future__ import annotations

import copy

import pytest
import torch
from measure import copies_for

from moe_kernels import fused_experts

quantized_weights = pytest.importorskip("moe_kernels.quantized_weights", reason="no quantized weights in this build")

COUNTS = (1, 64), (1, 4, 16, 64, 256, 1024, 4096)
# "dynamic": the activations are quantized as well, for each token.
FORMATS = ("int8", "int8 dynamic", "NF4")


def _nbytes(weight) -> int:
    return sum(value.nbytes for value in vars(weight).values() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("kind", FORMATS)
def test_quantized_experts(compare, model, T, kind):
    tokens = model.tokens(T)
    dynamic = kind == "int8 dynamic"
    quantize = quantized_weights.quantize_nf4 if kind == "NF4" else quantized_weights.quantize_int8

    first = model.keep(kind.split()[0], lambda: [quantize(weight) for weight in model.weights[0]])
    nbytes = sum(map(_nbytes, first))
    copies = copies_for(nbytes)

    def prepare():
        # The second form of int8 shares the copies of the first.
        weights = model.keep(f"{kind.split()[0]} copies", lambda: [first, *map(copy.deepcopy, [first] * (copies - 1))])
        return lambda number, given: fused_experts(
            given.x, given.indices, given.routing, *weights[number], dynamic=dynamic
        )

    def plain(number, given):
        return fused_experts(given.x, given.indices, given.routing, *model.weights[number])

    compare(
        {
            "ours": model.arm(f"ours {kind}", prepare, tokens, copies, must=True),
            "ours unquantized": model.arm("ours", lambda: plain, tokens),
            "SGLang int8": model.peer("SGLang int8", tokens) if dynamic else None,
        },
        nbytes=nbytes * len(tokens[0].indices.unique()) / model.shape.E,
        flops=model.operations(T),
        dtype=model.dtype,
        kind="int8" if dynamic else None,
        op=f"fused_experts {kind}",
        shape=model.name,
        sizes=model.shape,
    )
