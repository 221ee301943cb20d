"""A training step of the expert MLP, forward and backward with the gradients of all weights, against transformers."""

from __future__ import annotations

import torch
from peers import transformers

from moe_kernels import fused_experts

COUNTS = (64,), (512, 2048)
# transformers' eager loop makes a gradient of the size of all experts for each expert that is hit: minutes.
EAGER_AT_MOST = 512


def test_training_step(compare, session, model, T):
    E, *_ = model.shape
    gate_up, down = (w.detach().requires_grad_() for w in model.weights[0])
    tokens = model.tokens(T)[0]
    grad = torch.randn(T, model.shape.H, generator=torch.Generator().manual_seed(3)).to(model.dtype)
    theirs = {name: transformers.mixtral_experts(gate_up, down, name) for name in ("eager", "grouped_mm")}

    def step(forward, weights):
        with torch.inference_mode(False), torch.enable_grad():
            leaf, routing = tokens.x.clone().requires_grad_(), tokens.narrow.clone().requires_grad_()
            for weight in weights:
                weight.grad = None
            forward(leaf, routing).backward(grad.clone())
            return (leaf.grad, routing.grad, *(weight.grad for weight in weights))

    def ours(turn):
        return step(lambda x, routing: fused_experts(x, tokens.indices, routing, gate_up, down), (gate_up, down))

    def peer(name):
        experts = theirs[name]
        weights = experts.gate_up_proj, experts.down_proj
        return lambda turn: step(lambda x, routing: experts(x, tokens.wide, routing), weights)

    hit = len(tokens.indices.unique())
    compare(
        {
            "ours": ours,
            "eager": peer("eager") if not session.small and T <= EAGER_AT_MOST else None,
            "grouped_mm": peer("grouped_mm"),
        },
        # Weights are read in the forward and again in the backward, every expert's gradient is written.
        nbytes=model.expert_bytes * (2 * hit + E),
        flops=3 * model.operations(T),
        dtype=model.dtype,
        shape=model.name,
        sizes=model.shape,
    )
