"""Scores, choice, weights and the statistics of the auxiliary losses, in one pass over the logits.

Each program has some tokens and all experts. It stores its part of the statistics; a second kernel adds the parts up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from moe_kernels.backends.triton.rows import with_unit_columns
from moe_kernels.backends.triton.topk_gating_kernels import (
    SUMS,
    _gating_backward_kernel,
    _gating_kernel,
    _statistics_kernel,
)

# Numbers in a tile (eight a thread) and tokens in the largest one.
ELEMENTS, TOKENS = 1024, 64
# With more tiles than this, a program takes several, so that there are few parts to add up. Not yet measured.
PROGRAMS = 512
# Adding up: programs and experts at once.
ROWS, EXPERTS = 128, 16


@dataclass(frozen=True)
class Tile:
    """Tokens, groups and experts of a group in one tile, the latter two padded; it does not depend on T."""

    tokens: int
    groups: int
    size: int


def tile(E: int, num_groups: int) -> Tile:
    groups, size = triton.next_power_of_2(num_groups), triton.next_power_of_2(E // num_groups)
    return Tile(min(TOKENS, max(1, ELEMENTS // (groups * size))), groups, size)


def _packed(x: Tensor | None) -> Tensor | None:
    """Return x in a dtype that the kernels read, without gaps."""
    if x is None:
        return None
    x = x.contiguous()
    if x.dtype == torch.bool:
        return x.view(torch.uint8)
    return x.to(torch.float32) if x.dtype == torch.float64 else x


def topk_gating_triton(
    logits: Tensor,
    k: int,
    score: str,
    bias: Tensor | None,
    num_groups: int,
    top_groups: int,
    renormalize: bool,
    scale: float,
    noise: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return weights, indices, counts, mean probability, mean squared logsumexp and mean entropy."""
    T, E = logits.shape
    f32, i32 = torch.float32, torch.int32
    weights, indices = logits.new_empty(T, k, dtype=f32), logits.new_empty(T, k, dtype=i32)
    counts, mean_probability = logits.new_empty(E, dtype=f32), logits.new_empty(E, dtype=f32)
    z, entropy = logits.new_empty((), dtype=f32), logits.new_empty((), dtype=f32)
    logits, bias, noise, mask = with_unit_columns(logits), _packed(bias), _packed(noise), _packed(mask)
    block = tile(E, num_groups)
    # Without tokens there is one program, whose part is zeros.
    programs = min(max(triton.cdiv(T, block.tokens), 1), PROGRAMS)
    part_counts, part_probability = logits.new_empty(programs, E, dtype=i32), logits.new_empty(programs, E, dtype=f32)
    part_sums = logits.new_empty(programs, SUMS.value, dtype=f32)
    _gating_kernel[(programs,)](
        logits,
        bias,
        noise,
        mask,
        weights,
        indices,
        part_counts,
        part_probability,
        part_sums,
        T,
        k,
        logits.stride(0),
        scale,
        E=E,
        K_PAD=triton.next_power_of_2(k),
        GROUPS=num_groups,
        TOP_GROUPS=top_groups,
        GROUPS_PAD=block.groups,
        SIZE_PAD=block.size,
        SIGMOID=score == "sigmoid",
        RENORMALIZE=renormalize,
        BLOCK_T=block.tokens,
    )
    _statistics_kernel[(triton.cdiv(E, EXPERTS),)](
        part_counts, part_probability, part_sums, counts, mean_probability, z, entropy, programs, E, ROWS, EXPERTS
    )
    return weights, indices, counts, mean_probability, z, entropy


def topk_gating_backward_triton(
    grad_weights: Tensor,
    grad_mean_probability: Tensor,
    grad_z: Tensor,
    grad_entropy: Tensor,
    logits: Tensor,
    noise: Tensor | None,
    mask: Tensor | None,
    weights: Tensor,
    indices: Tensor,
    score: str,
    renormalize: bool,
    scale: float,
) -> Tensor:
    """Return the gradient of the logits (T, E), in their dtype."""
    T, E = logits.shape
    grad = logits.new_empty(T, E)
    if T == 0:
        return grad
    counted = None if mask is None else mask.sum(dtype=torch.int32)
    logits, noise, mask = with_unit_columns(logits), _packed(noise), _packed(mask)
    block = tile(E, 1)
    _gating_backward_kernel[(triton.cdiv(T, block.tokens),)](
        grad_weights.contiguous(),
        grad_mean_probability.contiguous(),
        grad_z,
        grad_entropy,
        logits,
        noise,
        mask,
        counted,
        weights.contiguous(),
        indices.contiguous(),
        grad,
        T,
        weights.shape[1],
        logits.stride(0),
        scale,
        E=E,
        E_PAD=block.size,
        SIGMOID=score == "sigmoid",
        RENORMALIZE=renormalize,
        BLOCK_T=block.tokens,
    )
    return grad
