"""topk_gating: scores, the choice of K experts, their weights, and the auxiliary losses' statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_kernels import validation
from moe_kernels.ops.registration import define, weight_dtype
from moe_kernels.registry import kernel


class TopKGating(NamedTuple):
    """What `topk_gating` gives."""

    weights: Tensor
    indices: Tensor
    counts: Tensor
    mean_probability: Tensor
    z: Tensor
    entropy: Tensor


def _run(
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
    backend: str | None,
) -> tuple[Tensor, ...]:
    call = kernel("topk_gating", backend, logits)
    return call(logits, k, score, bias, num_groups, top_groups, renormalize, scale, noise, mask)


def _shapes(logits: Tensor, k: int, *_: Any) -> tuple[Tensor, ...]:
    T, E = logits.shape
    wide = weight_dtype(logits)
    return (
        logits.new_empty(T, k, dtype=wide),
        logits.new_empty(T, k, dtype=torch.int32),
        logits.new_empty(E, dtype=wide),
        logits.new_empty(E, dtype=wide),
        logits.new_empty((), dtype=wide),
        logits.new_empty((), dtype=wide),
    )


def _run_backward(
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
    backend: str | None,
) -> Tensor:
    call = kernel("topk_gating", backend, logits, backward=True)
    return call(
        grad_weights,
        grad_mean_probability,
        grad_z,
        grad_entropy,
        logits,
        noise,
        mask,
        weights,
        indices,
        score,
        renormalize,
        scale,
    )


_backward_op = define(
    "topk_gating_backward",
    "(Tensor grad_weights, Tensor grad_mean_probability, Tensor grad_z, Tensor grad_entropy, Tensor logits, "
    "Tensor? noise, Tensor? mask, Tensor weights, Tensor indices, str score, bool renormalize, float scale, "
    "str? backend) -> Tensor",
    _run_backward,
    lambda grad_weights, gp, gz, ge, logits, *_: torch.empty_like(logits, memory_format=torch.contiguous_format),
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, _, score, _, _, _, renormalize, scale, noise, mask, backend = inputs
    weights, indices, counts = output[0], output[1], output[2]
    ctx.mark_non_differentiable(indices, counts)
    ctx.save_for_backward(logits, noise, mask, weights, indices)
    ctx.options = (score, renormalize, scale, backend)


def _backward(ctx: Any, grad_weights: Tensor, _i: Any, _c: Any, gp: Tensor, gz: Tensor, gh: Tensor) -> tuple[Any, ...]:
    logits, noise, mask, weights, indices = ctx.saved_tensors
    score, renormalize, scale, backend = ctx.options
    grad = _backward_op(
        grad_weights, gp, gz, gh, logits, noise, mask, weights, indices, score, renormalize, scale, backend
    )
    grad_noise = grad.to(noise.dtype) if noise is not None and noise.requires_grad else None
    return grad, None, None, None, None, None, None, None, grad_noise, None, None


_op = define(
    "topk_gating",
    "(Tensor logits, int k, str score, Tensor? bias, int num_groups, int top_groups, bool renormalize, float scale, "
    "Tensor? noise, Tensor? mask, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    _shapes,
    setup_context=_setup_context,
    backward=_backward,
)


def topk_gating(
    logits: Tensor,
    k: int,
    *,
    score: str = "softmax",
    bias: Tensor | None = None,
    num_groups: int = 1,
    top_groups: int = 1,
    renormalize: bool = False,
    scale: float = 1.0,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    backend: str | None = None,
) -> TopKGating:
    """Choose K experts for each token and give their weights and the auxiliary losses' statistics.

    Softmax gating is Shazeer et al. 2017 (arXiv:1701.06538); sigmoid scores with a bias for the choice only, and the
    choice of groups first, are DeepSeek-V3's (arXiv:2412.19437). Ties go to the lower index. An expert at -inf is never
    chosen while a finite one is left, +inf wins. A row with a NaN, or of nothing but -inf, gets the indices 0..K-1 and
    NaN weights.

    Args:
        logits: (T, E) floating; everything is computed in float32 (float64 for float64).
        k: experts per token, 1 to E.
        score: "softmax" over all experts, or "sigmoid" of each.
        bias: (E) added to the scores for the choice, never to the weights; gets no gradient.
        num_groups: contiguous groups of experts; the choice is limited to the best `top_groups` of them, a group's
            score being its best choice score or, with a bias, the sum of its two best.
        top_groups: groups kept.
        renormalize: divide the chosen scores by their sum.
        scale: factor on the weights.
        noise: (T, E) added to the logits before anything else (noisy gating).
        mask: (T) bool, True for the tokens that count in the statistics. The choice ignores it.
        backend: a backend's name that must serve the call.

    Returns:
        weights (T, K) float32 and indices (T, K) int32, in descending order of choice; counts (E) float32 of slots per
        expert; mean_probability (E) float32 of the full softmax; z, the mean squared logsumexp, and entropy, the mean
        entropy in nats, both () float32. Statistics are over the unmasked tokens, zero if there are none.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
    """
    validation.check_topk_gating(logits, k, score, bias, num_groups, top_groups, noise, mask)
    out = _op(logits, k, score, bias, num_groups, top_groups, renormalize, float(scale), noise, mask, backend)
    return TopKGating(*out)
