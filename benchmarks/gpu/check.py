"""Whether an arm computes what it should, before it is timed: compared with a plain loop in float32.

A forward is compared on some of the tokens, which is exact because tokens do not depend on each other; the gradients of
the weights on one expert, with all of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peers import Arm, Tokens
from torch import Tensor

from moe_kernels.testing import TOLERANCE, ExpertInputs, naive_experts, relative_error

# Tokens at the start and at the end: a wrong address shows at the far end first.
SAMPLED = 128


class Wrong(RuntimeError):
    """A result is too far from the reference; the message says which and how far."""


def _sample(T: int, device: torch.device) -> Tensor:
    every = torch.arange(T, device=device)
    return every if T <= 2 * SAMPLED else torch.cat([every[:SAMPLED], every[-SAMPLED:]])


def _require(pairs: Sequence[tuple[str, Tensor, Tensor]], factor: float) -> float:
    worst = 0.0
    for what, got, want in pairs:
        limit = factor * TOLERANCE[got.dtype if got.dtype != torch.float32 else torch.bfloat16]
        try:
            error = relative_error(got, want)
        except AssertionError as problem:
            raise Wrong(f"{what}: {problem}") from problem
        if not error <= limit:
            raise Wrong(f"{what}: relative error {error:.2g} exceeds {limit:.2g}")
        worst = max(worst, error)
    return worst


def check_forward(out: Tensor, tokens: Tokens, gate_up: Tensor, down: Tensor, factor: float) -> float:
    """Return the relative error of a forward.

    Args:
        gate_up, down: the weights in the model's order, gate rows first.
        factor: on the tolerance of moe_kernels.testing.

    Raises:
        Wrong: it is too large.
    """
    with torch.no_grad():
        return _require([("result", *_forward_pair(out, tokens, gate_up, down))], factor)


def _forward_pair(out: Tensor, tokens: Tokens, gate_up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    chosen = _sample(len(tokens.x), tokens.x.device)
    inputs = ExpertInputs(tokens.x[chosen], tokens.indices[chosen], tokens.routing[chosen], gate_up, down, None, None)
    return out[chosen], _by_expert(inputs)


def _one_expert(inputs: ExpertInputs, e: int) -> ExpertInputs:
    """Return the inputs with the other experts gone, in float32: never are all weights widened at once."""
    one = torch.where(inputs.indices == e, 0, 1).int()
    pair = inputs.gate_up[e : e + 1].detach().float(), inputs.down[e : e + 1].detach().float()
    return ExpertInputs(inputs.x.float(), one, inputs.weights.float(), *pair, None, None)


def _by_expert(inputs: ExpertInputs) -> Tensor:
    parts = (naive_experts(_one_expert(inputs, int(e))) for e in inputs.indices.unique())
    return sum(parts, start=torch.zeros_like(inputs.x, dtype=torch.float32))


def _gradients_by_expert(inputs: ExpertInputs, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of the routing weights."""
    leaves = inputs.x.detach().float().requires_grad_(), inputs.weights.detach().float().requires_grad_()
    total = [torch.zeros_like(leaf) for leaf in leaves]
    with torch.enable_grad():
        for e in inputs.indices.unique():
            out = naive_experts(_one_expert(inputs._replace(x=leaves[0], weights=leaves[1]), int(e)))
            for sum_, part in zip(total, torch.autograd.grad(out, leaves, grad.float()), strict=True):
                sum_ += part
    return total[0], total[1]


def check_backward(
    grads: Sequence[Tensor], grad: Tensor, tokens: Tokens, gate_up: Tensor, down: Tensor, arm: Arm, factor: float
) -> float:
    """Return the largest relative error of the gradients of x, the routing weights, gate_up and down.

    Raises:
        Wrong: one is too large.
    """
    grad_x, grad_routing, grad_gate_up, grad_down = grads
    chosen = _sample(len(tokens.x), tokens.x.device)
    inputs = ExpertInputs(tokens.x[chosen], tokens.indices[chosen], tokens.routing[chosen], gate_up, down, None, None)
    wanted = _gradients_by_expert(inputs, grad[chosen])
    pairs = [("gradient of x", grad_x[chosen], wanted[0]), ("of the routing weights", grad_routing[chosen], wanted[1])]

    e = int(tokens.indices[0, 0])
    rows = (tokens.indices == e).any(1).nonzero()[:, 0]
    one = torch.where(tokens.indices[rows] == e, 0, 1).int()
    up_e, down_e = (w[e : e + 1].detach().float().requires_grad_() for w in (gate_up, down))
    with torch.enable_grad():
        x, routing = tokens.x[rows].detach().float(), tokens.routing[rows].float()
        inputs = ExpertInputs(x, one, routing, up_e, down_e, None, None)
        wanted = torch.autograd.grad(naive_experts(inputs), (up_e, down_e), grad[rows].float())
    got_up = grad_gate_up[e]
    if arm.interleaved:
        got_up = torch.cat([got_up[0::2], got_up[1::2]])
    pairs += [("gradient of gate_up", got_up, wanted[0][0]), ("of down", grad_down[e], wanted[1][0])]
    return _require(pairs, factor)
