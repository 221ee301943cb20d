"""The expert MLP of many tokens: forward, training step, and what the training step keeps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from peers import Arm, Tokens, Unavailable
from torch import Tensor

from gpu import arms, shapes
from gpu.check import check_backward, check_forward
from gpu.context import Context
from gpu.results import Row
from gpu.timing import Measured, Skip


def _layer(context: Context, row: Row, grad: bool) -> tuple[shapes.Shape, Tensor, Tensor, Tokens]:
    shape = context.fitting(row)
    gate_up, down = shapes.weights(shape, context.device)
    row.sizes = shape._asdict()
    gate_up.requires_grad_(grad)
    down.requires_grad_(grad)
    return shape, gate_up, down, shapes.tokens(shape, row.T, context.device)


def _tolerance(name: str) -> float:
    return arms.PEERS_TOLERANCE if name in arms.PEERS else 1.0


def forward(context: Context, row: Row) -> None:
    """A forward without gradients."""
    shape, gate_up, down, tokens = _layer(context, row, grad=False)
    row.operations = shape.operations(row.T)
    row.nbytes = shape.E * shape.expert_values * 2 + 2 * row.T * shape.H * 2
    with torch.no_grad():
        arm = arms.arm(row.arm, gate_up, down)
        row.error = check_forward(arm.forward(tokens), tokens, gate_up, down, _tolerance(row.arm))
        context.time(row, context.measure(lambda: arm.forward(tokens)))


def training(context: Context, row: Row) -> None:
    """Forward and backward, with the gradients of x, the routing weights and all weights."""
    shape, gate_up, down, tokens = _layer(context, row, grad=True)
    row.operations = 3 * shape.operations(row.T)
    # The weights are read by forward and backward, and their gradients written.
    row.nbytes = 3 * shape.E * shape.expert_values * 2 + 4 * row.T * shape.H * 2
    arm = arms.arm(row.arm, gate_up, down)
    if not arm.trains:
        raise Unavailable("has no backward")
    x, routing = tokens.x.requires_grad_(), tokens.routing.requires_grad_()
    torch.manual_seed(3)
    grad = torch.randn(row.T, shape.H, device=context.device).to(shapes.DTYPE)

    def step() -> tuple[Tensor, ...]:
        given = Tokens(x, tokens.indices, tokens.wide, routing, routing.to(x.dtype))
        return torch.autograd.grad(arm.forward(given), (x, routing, arm.gate_up, arm.down), grad)

    with torch.enable_grad():
        grads = step()
        row.error = check_backward(grads, grad, tokens, gate_up, down, arm, _tolerance(row.arm))
        del grads
        context.time(row, context.measure(step, limit=0.8))


def batch_invariant(context: Context, row: Row) -> None:
    """What `batch_invariant=True` costs in a forward: `ratio` is its time over the time without."""
    if not arms.supports_batch_invariance():
        raise Skip("this version has no batch_invariant")
    shape, gate_up, down, tokens = _layer(context, row, grad=False)
    row.operations = shape.operations(row.T)
    row.nbytes = shape.E * shape.expert_values * 2 + 2 * row.T * shape.H * 2
    with torch.no_grad():
        invariant = arms.arm(row.arm, gate_up, down, batch_invariant=True)
        plain = arms.arm(row.arm, gate_up, down)
        out = invariant.forward(tokens)
        row.error = check_forward(out, tokens, gate_up, down, _tolerance(row.arm))
        _require_same_bits(out, tokens, invariant.forward)
        timed, without = (_clock(context, row.T, arm, tokens) for arm in (invariant, plain))
        context.time(row, timed)
    row.ratio, row.ratio_of = row.seconds / without.seconds, "time without"


def _clock(context: Context, T: int, arm: Arm, tokens: Tokens) -> Measured:
    """Few tokens take less time than the host needs to launch them: they go into a graph where there are graphs."""
    if T <= 64 and context.device.type == "cuda":
        return context.measure_graph([lambda: arm.forward(tokens)] * 8)
    return context.measure(lambda: arm.forward(tokens))


def _require_same_bits(out: Tensor, tokens: Tokens, call: Callable[[Tokens], Tensor]) -> None:
    few = Tokens(*(tensor[:7].contiguous() for tensor in tokens))
    if not torch.equal(call(few), out[:7]):
        raise RuntimeError("the bits of a token's result depend on how many tokens there are")


def memory(context: Context, row: Row) -> None:
    """What the forward of a training step keeps: `ratio` is its bytes over those of x, pre-activation and plan.

    On a GPU it is what torch's allocator has handed out; elsewhere what autograd saved.
    """
    shape, gate_up, down, tokens = _layer(context, row, grad=True)
    x, routing = tokens.x.requires_grad_(), tokens.routing.requires_grad_()
    arm = arms.arm(row.arm, gate_up, down)
    N = row.T * shape.K
    plan = 4 * (shape.E + 1 + 2 * N)
    wanted = x.nbytes + N * 2 * shape.I * x.element_size() + plan
    given = Tokens(x, tokens.indices, tokens.wide, routing, routing.detach().to(x.dtype).requires_grad_())
    with torch.enable_grad():
        if context.device.type == "cuda":
            # The first call makes what stays for ever: workspaces, compiled kernels.
            arm.forward(given)
            torch.cuda.synchronize(context.device)
            before = torch.cuda.memory_allocated(context.device)
            out = arm.forward(given)
            kept = torch.cuda.memory_allocated(context.device) - before - out.nbytes + x.nbytes
        else:
            kept = _saved_bytes(lambda: arm.forward(given), {gate_up.data_ptr(), down.data_ptr()})
    row.nbytes, row.ratio, row.ratio_of = float(kept), kept / wanted, "x, pre-activation and plan"


def _saved_bytes(call: Callable[[], Tensor], weights: set[int]) -> int:
    """Return the bytes of the storages that autograd keeps for the backward of a call, weights left out."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(found.values())
