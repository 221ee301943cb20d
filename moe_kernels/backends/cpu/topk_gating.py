"""Scores, choice, weights and the statistics of the auxiliary losses."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cpu.arguments import integers, result, result_float, rows, rows_or_none
from moe_kernels.native import core, view, view_or_none


def _noise(noise: Tensor | None) -> Tensor | None:
    if noise is not None and noise.dtype == torch.float64:
        noise = noise.to(torch.float32)
    return rows_or_none(noise)


def topk_gating_cpu(
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
    logits, noise, mask = rows(logits), _noise(noise), rows_or_none(mask)
    if bias is not None:
        bias = rows(bias.to(torch.float32))
    T, E = logits.shape
    weights, indices = result_float(logits, (T, k)), integers((T, k))
    counts, mean_probability = result_float(logits, (E,)), result_float(logits, (E,))
    z, entropy = result_float(logits, ()), result_float(logits, ())
    core().topk_gating(
        view(logits),
        view_or_none(bias),
        view_or_none(noise),
        view_or_none(mask),
        k,
        score == "sigmoid",
        num_groups,
        top_groups,
        renormalize,
        scale,
        view(weights),
        view(indices),
        view(counts),
        view(mean_probability),
        view(z),
        view(entropy),
        torch.get_num_threads(),
    )
    return weights, indices, counts, mean_probability, z, entropy


def topk_gating_backward_cpu(
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
    grad_weights, grad_mean_probability = rows(grad_weights), rows(grad_mean_probability)
    logits, noise, mask = rows(logits), _noise(noise), rows_or_none(mask)
    weights, indices = rows(weights), rows(indices)
    grad = result(logits, logits.shape)
    core().topk_gating_backward(
        view(grad_weights),
        view(grad_mean_probability),
        view(grad_z),
        view(grad_entropy),
        view(logits),
        view_or_none(noise),
        view_or_none(mask),
        view(weights),
        view(indices),
        score == "sigmoid",
        renormalize,
        scale,
        view(grad),
        torch.get_num_threads(),
    )
    return grad
