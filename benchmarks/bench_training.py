"""A training step of the expert MLP, forward and backward with the gradients of all weights, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from peers import transformers
from torch import Tensor

from moe_kernels import fused_experts, gradients_in_place

COUNTS = (64,), (512, 2048)
# transformers' eager loop makes a gradient of the size of all experts for each expert that is hit: minutes.
EAGER_AT_MOST = 512


def test_training_step(compare, session, model, T):
    """The first micro-batch: there is no gradient yet, and both sides allocate one."""
    _compare(compare, session, model, T, accumulate=False)


def test_training_step_accumulating(compare, session, model, T):
    """A later micro-batch: gradients are added to the `.grad` that is there."""
    _compare(compare, session, model, T, accumulate=True)


def _compare(compare: Callable[..., Any], session: Any, model: Any, T: int, accumulate: bool) -> None:
    E, *_ = model.shape
    tokens = model.tokens(T)[0]
    grad = torch.randn(T, model.shape.H, generator=torch.Generator().manual_seed(3)).to(model.dtype)

    def arm(forward: Callable[[Tensor, Tensor], Tensor], weights: tuple[Tensor, ...], in_place: bool) -> Any:
        if accumulate:
            with torch.inference_mode(False):
                for weight in weights:
                    weight.grad = torch.zeros_like(weight)

        def step(turn: int) -> tuple[Tensor | None, ...]:
            with torch.inference_mode(False), torch.enable_grad():
                x, routing = tokens.x.clone().requires_grad_(), tokens.narrow.clone().requires_grad_()
                if not accumulate:
                    for weight in weights:
                        weight.grad = None
                out = forward(x, routing)
                with gradients_in_place() if in_place else nullcontext():
                    out.backward(grad.clone())
                return (x.grad, routing.grad, *(weight.grad for weight in weights))

        return step

    def ours() -> Any:
        gate_up, down = (w.detach().requires_grad_() for w in model.weights[0])
        return arm(
            lambda x, routing: fused_experts(x, tokens.indices, routing, gate_up, down), (gate_up, down), accumulate
        )

    def peer(name: str) -> Any:
        experts = transformers.mixtral_experts(*(w.detach().requires_grad_() for w in model.weights[0]), name)
        weights = experts.gate_up_proj, experts.down_proj
        return arm(lambda x, routing: experts(x, tokens.wide, routing), weights, False)

    hit = len(tokens.indices.unique())
    compare(
        {
            "ours": ours(),
            "eager": peer("eager") if not session.small and not accumulate and T <= EAGER_AT_MOST else None,
            "grouped_mm": peer("grouped_mm"),
        },
        # Weights are read in the forward and again in the backward. Every expert's gradient is written, or those of the
        # experts that are hit are read and written.
        nbytes=model.expert_bytes * (4 * hit if accumulate else 2 * hit + E),
        flops=3 * model.operations(T),
        dtype=model.dtype,
        shape=model.name,
        sizes=model.shape,
    )
