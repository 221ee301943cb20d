"""grouped_lora on a linear layer's result, against PEFT's layer with an adapter name for each row."""

from __future__ import annotations

import pytest
import torch
from peers import peft
from torch.nn import functional as F

from moe_kernels import grouped_lora_
from moe_kernels.testing import assert_close

pytest.importorskip("peft")
# More than a core's share of the last-level cache, as the LoRA layers of a model are.
ROTATED_BYTES = 2**28
SCALING = 2.0


@pytest.mark.parametrize("base", ["delta", "with-base"])
@pytest.mark.parametrize("G", [16, 64], ids=lambda G: f"G{G}")
@pytest.mark.parametrize("N", [64, 2048], ids=lambda N: f"N{N}")
def test_grouped_lora(compare, request, N, G, dtype, base):
    small = request.config.getoption("--small")
    H, R = (256, 4) if small else (2048, 16)
    size = (2 * G * R * H + H * H) * dtype.itemsize
    copies = 2 if small else max(2, -(-ROTATED_BYTES // size))
    linears, weights, layers = [], [], []
    for _ in range(copies):
        linear = torch.nn.Linear(H, H, bias=False, dtype=dtype).requires_grad_(False)
        A = torch.randn(G, R, H).mul_(H**-0.5).to(dtype)
        B = torch.randn(G, H, R).mul_(R**-0.5).to(dtype)
        linears.append(linear)
        weights.append((A, B))
        layers.append(peft.lora_layer(linear, A, B, SCALING))
    x = torch.randn(N, H).to(dtype)
    groups = torch.randint(0, G, (N,), dtype=torch.int32)
    names = [str(g) for g in groups.tolist()]

    def layer(copy: int) -> torch.Tensor:
        return grouped_lora_(F.linear(x, linears[copy].weight), x, *weights[copy], groups, SCALING)

    assert_close(layer(0), layers[0](x, adapter_names=names).double())
    hit = len(groups.unique())
    nbytes = (2 * hit * R * H + 3 * N * H) * dtype.itemsize
    flops = 4 * N * R * H
    if base == "with-base":
        nbytes += (H * H + N * H) * dtype.itemsize
        flops += 2 * N * H * H
        ours = layer
    else:
        # Both add to a result that is there already.
        result = torch.zeros(N, H, dtype=dtype)
        layers = [peft.without_base(layer, torch.zeros_like(result)) for layer in layers]

        def ours(copy: int) -> torch.Tensor:
            return grouped_lora_(result, x, *weights[copy], groups, SCALING)

    compare(
        {"ours": ours, "PEFT": lambda copy: layers[copy](x, adapter_names=names)},
        # What both add to grows from call to call, and in another order.
        check=base == "with-base",
        nbytes=nbytes,
        flops=flops,
        dtype=dtype,
        copies=copies,
        shape=f"G{G}-H{H}-R{R}-{base}",
        T=N,
    )
