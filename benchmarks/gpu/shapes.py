"""Sizes of the layers that are measured, their weights, and their inputs.

Letters: T tokens, E experts, K experts per token, H hidden, I intermediate, N = T·K rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from peers import Tokens
from torch import Tensor


class Shape(NamedTuple):
    """Sizes of one MoE layer."""

    E: int
    K: int
    H: int
    I: int

    @property
    def expert_values(self) -> int:
        """Weights of one expert."""
        return 3 * self.I * self.H

    def operations(self, T: int) -> int:
        """Of a forward of T tokens, a multiply-add being two."""
        return 2 * T * self.K * self.expert_values


MODELS = {
    "OLMoE": Shape(64, 8, 2048, 1024),
    "Qwen3-30B-A3B": Shape(128, 8, 2048, 768),
    "Mixtral-8x7B": Shape(8, 2, 4096, 14336),
    "DeepSeek-V3": Shape(256, 8, 7168, 2048),
}
# To try the harness: every name has a shape that a CPU computes in milliseconds.
SMALL = {
    "OLMoE": Shape(8, 2, 128, 64),
    "Qwen3-30B-A3B": Shape(16, 4, 128, 64),
    "Mixtral-8x7B": Shape(4, 2, 128, 128),
    "DeepSeek-V3": Shape(16, 4, 192, 64),
}
DTYPE = torch.bfloat16
# Weights, their gradients and a peer's own copy of both. Of (N, H) or (N, 2I) a backward needs about six.
COPIES_OF_WEIGHTS, COPIES_OF_ROWS = 4, 6


def fitting(shape: Shape, T: int, free: int | None) -> Shape:
    """Return the shape with E halved until a training step of T tokens fits into `free` bytes; None: no limit.

    The rows per expert grow with it, so that this is another case: the row of the results has its E.
    """
    rows = T * shape.K * max(shape.H, 2 * shape.I) * DTYPE.itemsize * COPIES_OF_ROWS
    E = shape.E
    while free is not None and E > shape.K:
        if COPIES_OF_WEIGHTS * E * shape.expert_values * DTYPE.itemsize + rows <= free:
            break
        E //= 2
    return shape._replace(E=E)


def free_memory(device: torch.device, empty: bool = False) -> int | None:
    """Return the bytes that are free on a GPU, or would be if it were empty; None for a CPU."""
    return torch.cuda.mem_get_info(device)[int(empty)] if device.type == "cuda" else None


def weights(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw gate_up (E, 2I, H) and down (E, H, I): random, because a GPU multiplies zeros faster."""
    E, _, H, I = shape
    torch.manual_seed(0)
    gate_up = torch.empty(E, 2 * I, H, dtype=DTYPE, device=device).normal_(0, H**-0.5)
    down = torch.empty(E, H, I, dtype=DTYPE, device=device).normal_(0, I**-0.5)
    return gate_up, down


def tokens(shape: Shape, T: int, device: torch.device, seed: int = 1) -> Tokens:
    """Draw inputs whose tokens choose K distinct experts each, all experts alike."""
    E, K, H, _ = shape
    torch.manual_seed(seed)
    x = torch.randn(T, H, device=device).to(DTYPE)
    indices = torch.rand(T, E, device=device).topk(K, dim=1).indices.int()
    routing = torch.softmax(torch.randn(T, K, device=device), 1)
    return as_tokens(x, indices, routing)


def as_tokens(x: Tensor, indices: Tensor, routing: Tensor) -> Tokens:
    return Tokens(x, indices, indices.long(), routing, routing.to(x.dtype))


def rotated(shape: Shape, T: int, device: torch.device) -> list[Tokens]:
    """Return inputs that ask for other experts in turn, so that no cache holds what a call of few tokens reads."""
    first = tokens(shape, T, device)
    distinct, numbers = first.indices.unique(return_inverse=True)
    order = torch.randperm(shape.E, device=device).int()
    turns = max(1, min(16, shape.E // len(distinct)))
    others = (order[(numbers + turn * len(distinct)) % shape.E] for turn in range(turns))
    return [as_tokens(first.x, indices, first.routing) for indices in others]


def experts_hit(given: list[Tokens]) -> float:
    """Return how many different experts a call asks for, on average."""
    return sum(len(one.indices.unique()) for one in given) / len(given)
