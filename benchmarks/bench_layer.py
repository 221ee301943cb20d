"""A training step of MoELayer, forward and backward, against transformers' experts."""

from __future__ import annotations

import peers
import torch

from moe_kernels import fused_experts
from moe_kernels.testing import random_indices


def test_training_step(compare, shape, T, dtype):
    E, K, H, I = shape
    gate_up = torch.randn(E, 2 * I, H).mul_(H**-0.5).to(dtype).requires_grad_()
    down = torch.randn(E, H, I).mul_(I**-0.5).to(dtype).requires_grad_()
    indices = random_indices(T, E, K)
    routing = torch.softmax(torch.randn(T, K), 1)
    x = torch.randn(T, H).to(dtype)
    theirs = {name: peers.mixtral_experts(gate_up, down, name) for name in ("eager", "grouped_mm")}

    def step(call, index):
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.clone().requires_grad_()
            gate_up.grad = down.grad = None
            call(leaf, index, routing.to(dtype)).sum().backward()

    def peer(name):
        def run(copy):
            experts = theirs[name]
            experts.zero_grad(set_to_none=True)
            step(experts, indices.long())

        return run

    hit = len(indices.unique())
    size = 3 * I * H * dtype.itemsize
    compare(
        lambda copy: step(lambda leaf, index, w: fused_experts(leaf, index, w, gate_up, down), indices),
        # The eager loop makes a full-size zero gradient for each expert that is hit: minutes at these sizes.
        peer("eager") if E * hit <= 64 else None,
        peer("grouped_mm"),
        # Weights are read in the forward and again in the backward, every expert's gradient is written.
        nbytes=size * (2 * hit + E),
        flops=3 * 2 * T * K * 3 * I * H,
        dtype=dtype,
        rounds=3,
    )
