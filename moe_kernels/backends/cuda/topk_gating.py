"""Scores, choice, weights and the statistics of the auxiliary losses, on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cuda.launch import launch_arguments, module, optional_view, view, with_unit_columns


def _noise(noise: Tensor | None) -> Tensor | None:
    if noise is None:
        return None
    return with_unit_columns(noise.to(torch.float32) if noise.dtype == torch.float64 else noise)


def _mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()


def topk_gating_cuda(
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
    logits, noise, mask = with_unit_columns(logits), _noise(noise), _mask(mask)
    bias = None if bias is None else bias.to(torch.float32).contiguous()
    T, E = logits.shape

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=logits.device)

    weights, indices = floats(T, k), torch.empty((T, k), dtype=torch.int32, device=logits.device)
    counts, mean_probability, z, entropy = floats(E), floats(E), floats(), floats()
    scratch = floats(module().topk_gating_scratch(T, E))
    module().topk_gating(
        view(logits),
        optional_view(bias),
        optional_view(noise),
        optional_view(mask),
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
        view(scratch),
        *launch_arguments(logits),
    )
    return weights, indices, counts, mean_probability, z, entropy


def topk_gating_backward_cuda(
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
    logits, noise, mask = with_unit_columns(logits), _noise(noise), _mask(mask)
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    # Each stays in a variable until the launch: a view does not keep its tensor alive.
    grad_weights, grad_mean_probability = grad_weights.contiguous(), grad_mean_probability.contiguous()
    weights, indices = weights.contiguous(), indices.contiguous()
    module().topk_gating_backward(
        view(grad_weights),
        view(grad_mean_probability),
        view(grad_z),
        view(grad_entropy),
        view(logits),
        optional_view(noise),
        optional_view(mask),
        view(weights),
        view(indices),
        score == "sigmoid",
        renormalize,
        scale,
        view(grad_logits),
        *launch_arguments(logits),
    )
    return grad_logits
