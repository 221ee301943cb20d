"""SGLang's `fused_experts_cpu`, as vLLM ships it, called alone over weights that it packs beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from peers import Forward, Tokens, copied, library

# The codes of its argument moe_comp_method.
UNQUANTIZED, INT8 = 0, 1


def _forward(
    ups: list[Tensor], downs: list[Tensor], method: int, scales: tuple[Tensor | None, Tensor | None]
) -> Forward:
    kernels = library.kernels("fused_experts_cpu")
    # Zero points, the activations' scale, block size, biases, alpha and limit.
    absent = [None] * 8

    def forward(copy: int, tokens: Tokens) -> Tensor:
        out = torch.empty_like(tokens.x)
        x, indices, routing = tokens.x, tokens.indices, tokens.routing
        kernels.fused_experts_cpu(out, x, ups[copy], downs[copy], routing, indices, method, *scales, *absent, True)
        return out

    return forward


def pack(gate_up: Tensor, down: Tensor, copies: int) -> Forward:
    kernels = library.kernels("convert_weight_packed")
    ups, downs = (copied(kernels.convert_weight_packed(w), copies) for w in (gate_up, down))
    return _forward(ups, downs, UNQUANTIZED, (None, None))


def pack_int8(gate_up: Tensor, down: Tensor, copies: int) -> Forward:
    kernels = library.kernels("convert_weight_packed")
    packed, scales = [], []
    for weight in (gate_up, down):
        values = torch.empty_like(weight, dtype=torch.int8)
        scale = torch.empty(weight.shape[:2])
        for e, matrix in enumerate(weight):
            wide = matrix.float()
            scale[e] = wide.abs().amax(1) / 127
            values[e] = (wide / scale[e, :, None]).round()
        packed.append(copied(kernels.convert_weight_packed(values), copies))
        scales.append(scale)
    return _forward(packed[0], packed[1], INT8, tuple(scales))


def prepare(gate_up: Tensor, down: Tensor, copies: int) -> Forward:
    """Return the forward over packed copies; see the package."""
    library.try_out("sglang", gate_up.dtype)
    return pack(gate_up, down, copies)


def prepare_int8(gate_up: Tensor, down: Tensor, copies: int) -> Forward:
    """Like `prepare` with int8 weights, a scale for each row, and activations that it quantizes for each token."""
    library.try_out("sglang-int8", gate_up.dtype)
    return pack_int8(gate_up, down, copies)
