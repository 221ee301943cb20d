"""vLLM's `cpu_fused_moe`, called alone, over weights that it packs beforehand."""

from __future__ import annotations

import torch
from torch import Tensor

from peers import Forward, Tokens, copied, library


def instruction_set(dtype: torch.dtype) -> str:
    """What vLLM would choose: "amx" for bfloat16 where the processor has tiles, "vec" (AVX-512) elsewhere."""
    return "amx" if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else "vec"


def pack(gate_up: Tensor, down: Tensor, copies: int) -> Forward:
    kernels = library.kernels("prepack_moe_weight", "cpu_fused_moe")
    isa = instruction_set(gate_up.dtype)
    if isa == "amx":
        torch.cpu._init_amx()

    def packed(weight: Tensor) -> list[Tensor]:
        target = torch.empty_like(weight)
        kernels.prepack_moe_weight(weight, target, isa)
        return copied(target, copies)

    ups, downs = packed(gate_up), packed(down)

    def forward(copy: int, tokens: Tokens) -> Tensor:
        out = torch.empty_like(tokens.x)
        x, indices, routing = tokens.x, tokens.indices, tokens.routing
        kernels.cpu_fused_moe(out, x, ups[copy], downs[copy], None, None, routing, indices, False, "silu", isa)
        return out

    return forward


def prepare(gate_up: Tensor, down: Tensor, copies: int) -> Forward:
    """Return the forward over packed copies; see the package."""
    library.try_out("vllm", gate_up.dtype)
    return pack(gate_up, down, copies)
