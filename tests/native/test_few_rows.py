"""Few rows for each expert, and one with more: the bits are those of each token alone, by any number of threads."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import fused_experts
from moe_kernels.native import native
from moe_kernels.quantized_weights import quantize_int8, quantize_nf4

module, reason = native()
pytestmark = pytest.mark.skipif(module is None, reason=str(reason))

T, E, K, H, I = 24, 12, 3, 320, 192


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _inputs(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, H, generator=generator).to(dtype)
    # One expert has many rows, one has none, and some slots have no expert.
    indices = torch.randint(1, E + 1, (T, K), generator=generator, dtype=torch.int32)
    indices[:20, 0] = 2
    routing = torch.rand(T, K, generator=generator)
    gate_up = (torch.randn(E, 2 * I, H, generator=generator) * H**-0.5).to(dtype)
    down = (torch.randn(E, H, I, generator=generator) * I**-0.5).to(dtype)
    return x, indices, routing, gate_up, down


def _weights(kind, gate_up, down):
    if kind == "nf4":
        return quantize_nf4(gate_up), quantize_nf4(down)
    if kind.startswith("int8"):
        return quantize_int8(gate_up), quantize_int8(down)
    return gate_up, down


@pytest.mark.parametrize("kind", ["dense", "nf4", "int8", "int8 dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_are_those_of_each_token_alone(dtype, kind):
    x, indices, routing, gate_up, down = _inputs(dtype)
    weights = _weights(kind, gate_up, down)
    options = {"backend": "cpu", "dynamic": kind == "int8 dynamic"}
    torch.set_num_threads(1)
    alone = [fused_experts(x[t : t + 1], indices[t : t + 1], routing[t : t + 1], *weights, **options) for t in range(T)]
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        for _ in range(5):
            assert torch.equal(fused_experts(x, indices, routing, *weights, **options), torch.cat(alone))


def test_nothing_but_sentinels():
    x, indices, routing, gate_up, down = _inputs(torch.float32)
    assert not fused_experts(x, indices + E, routing, gate_up, down, backend="cpu").any()
