"""fused_experts: the whole expert MLP in one op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_kernels import validation
from moe_kernels.gradients import in_place_targets
from moe_kernels.ops.direct import plain_call
from moe_kernels.ops.fused_experts_quantized import fused_experts_quantized
from moe_kernels.ops.registration import define, needs_grad, under_autocast, weight_dtype
from moe_kernels.quantized_weights import QuantizedWeight
from moe_kernels.registry import choose, kernel, unforced_on_cpu


def _run(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    limit: float | None,
    interleaved: bool,
    transposed: bool,
    save: bool,
    backend: str | None,
    batch_invariant: bool | None,
) -> tuple[Tensor, ...]:
    call = kernel("fused_experts", backend, x, gate_up, down, batch_invariant=batch_invariant)
    return call(
        x, indices, weights, gate_up, down, gate_up_bias, down_bias, activation, limit, interleaved, transposed, save
    )


def _shapes(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    limit: float | None,
    interleaved: bool,
    transposed: bool,
    save: bool,
    backend: str | None,
    batch_invariant: bool | None,
) -> tuple[Tensor, ...]:
    T, K = indices.shape
    width = gate_up.shape[2] if transposed else gate_up.shape[1]
    int32 = torch.int32
    return (
        x.new_empty(x.shape),
        x.new_empty((T * K, width) if save else (0,)),
        x.new_empty((down.shape[0] + 1,) if save else (0,), dtype=int32),
        x.new_empty((T * K,) if save else (0,), dtype=int32),
        x.new_empty((T, K) if save else (0,), dtype=int32),
    )


def _run_backward(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    pre: Tensor,
    offsets: Tensor,
    row_token: Tensor,
    slot_row: Tensor,
    activation: str,
    limit: float | None,
    interleaved: bool,
    transposed: bool,
    need: list[bool],
    backend: str | None,
) -> tuple[Tensor, ...]:
    call = kernel("fused_experts", backend, x, gate_up, down, backward=True)
    return call(
        grad,
        x,
        weights,
        gate_up,
        down,
        gate_up_bias,
        down_bias,
        pre,
        offsets,
        row_token,
        slot_row,
        activation,
        limit,
        interleaved,
        transposed,
        *need,
    )


def _backward_shapes(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    pre: Tensor,
    offsets: Tensor,
    row_token: Tensor,
    slot_row: Tensor,
    activation: str,
    limit: float | None,
    interleaved: bool,
    transposed: bool,
    need: list[bool],
    backend: str | None,
) -> tuple[Tensor, ...]:
    def like(value: Tensor | None, needed: bool, dtype: torch.dtype = x.dtype) -> Tensor:
        return x.new_empty(value.shape if value is not None and needed else (0,), dtype=dtype)

    return (
        like(x, need[0]),
        like(weights, need[1], weight_dtype(x)),
        like(gate_up, need[2]),
        like(down, need[3]),
        like(gate_up_bias, need[4]),
        like(down_bias, need[5]),
    )


_backward_op = define(
    "fused_experts_backward",
    "(Tensor grad, Tensor x, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, Tensor? down_bias, "
    "Tensor pre, Tensor offsets, Tensor row_token, Tensor slot_row, str activation, float? limit, bool interleaved, "
    "bool transposed, bool[] need, str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _backward_shapes,
)


def _run_backward_into(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    pre: Tensor,
    offsets: Tensor,
    row_token: Tensor,
    slot_row: Tensor,
    activation: str,
    limit: float | None,
    interleaved: bool,
    transposed: bool,
    need: list[bool],
    backend: str | None,
    grad_gate_up: Tensor,
    grad_down: Tensor,
) -> tuple[Tensor, ...]:
    saved = (pre, offsets, row_token, slot_row)
    arguments = (grad, x, weights, gate_up, down, gate_up_bias, down_bias, *saved)
    call = kernel("fused_experts", backend, x, gate_up, down, backward=True)
    if choose("fused_experts", backend, x, gate_up, down) == "cpu":
        grads = call(*arguments, activation, limit, interleaved, transposed, *need, into=(grad_gate_up, grad_down))
    else:
        grads = call(*arguments, activation, limit, interleaved, transposed, *need)
        grad_gate_up.add_(grads[2])
        grad_down.add_(grads[3])
    return grads[0], grads[1], grads[4], grads[5]


def _into_shapes(*arguments: Any) -> tuple[Tensor, ...]:
    shapes = _backward_shapes(*arguments[:17])
    return shapes[0], shapes[1], shapes[4], shapes[5]


_backward_into_op = define(
    "fused_experts_backward_into",
    "(Tensor grad, Tensor x, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, Tensor? down_bias, "
    "Tensor pre, Tensor offsets, Tensor row_token, Tensor slot_row, str activation, float? limit, bool interleaved, "
    "bool transposed, bool[] need, str? backend, Tensor(a!) grad_gate_up, Tensor(b!) grad_down) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward_into,
    _into_shapes,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, weights, gate_up, down, gate_up_bias, down_bias, *options, save, backend, _ = inputs
    _, pre, offsets, row_token, slot_row = output
    ctx.mark_non_differentiable(pre, offsets, row_token, slot_row)
    ctx.save_for_backward(
        x, weights, gate_up, down, gate_up_bias, down_bias, *((pre, offsets, row_token, slot_row) if save else ())
    )
    ctx.options = (tuple(options), save, backend)


# Of activation, limit, interleaved, transposed, save, backend and batch_invariant.
_NO_GRADIENT = (None,) * 7


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    options, save, backend = ctx.options
    if not save:
        raise RuntimeError("fused_experts: backward of a call that was made with save=False")
    need = [ctx.needs_input_grad[i] for i in (0, 2, 3, 4, 5, 6)]
    saved = ctx.saved_tensors
    into = in_place_targets(saved[2], saved[3]) if need[2] and need[3] else None
    if into is not None:
        grads = _backward_into_op(grad, *saved, *options, need, backend, *into)
        gx, gweights, gup_bias, gdown_bias = (g if n else None for g, n in zip(grads, need[:2] + need[4:], strict=True))
        return gx, None, gweights, None, None, gup_bias, gdown_bias, *_NO_GRADIENT
    grads = _backward_op(grad, *saved, *options, need, backend)
    gx, gweights, gup, gdown, gup_bias, gdown_bias = (g if n else None for g, n in zip(grads, need, strict=True))
    return gx, None, gweights, gup, gdown, gup_bias, gdown_bias, *_NO_GRADIENT


_op = define(
    "fused_experts",
    "(Tensor x, Tensor indices, Tensor weights, Tensor gate_up, Tensor down, Tensor? gate_up_bias, "
    "Tensor? down_bias, str activation, float? limit, bool interleaved, bool transposed, bool save, str? backend, "
    "bool? batch_invariant) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    _shapes,
    setup_context=_setup_context,
    backward=_backward,
)


def fused_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor | QuantizedWeight,
    down: Tensor | QuantizedWeight,
    *,
    activation: str = "silu",
    limit: float | None = None,
    interleaved: bool = False,
    transposed: bool = False,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    dynamic: bool = False,
    batch_invariant: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Run each token through its experts' MLPs: out[t] = Σ_k weights[t, k] · (down_e · act(gate_up_e · x[t])).

    For training only x, the pre-activation (N, 2I) and the plan are kept. No permuted copy of x exists. Quantized
    weights are constants: gradients go to x, the routing weights and the biases.

    Args:
        x: (T, H) floating.
        indices: (T, K) int32 or int64; an index of E or more is a sentinel: no work, zero output, zero gradient.
        weights: (T, K) floating; used in float32.
        gate_up: (E, 2I, H), gate and up projections; or (E, I, H), the up-projection of experts without a gate. In x's
            dtype, or an `Nf4Weight` or `Int8Weight`.
        down: (E, H, I), in the same format.
        activation: "silu", "gelu" (exact), "gelu_tanh", "relu", "relu2", or, with a gate, "gpt_oss" (clamped at 7,
            slope 1.702).
        limit: with a gate: min(gate, limit) and clamp(up, -limit, limit) take the places of gate and up (DeepSeek-V4).
        interleaved: gate and up rows alternate, gate first; else the gate is the first half.
        transposed: gate_up is (E, H, 2I) or (E, H, I) and down (E, I, H).
        gate_up_bias: (E, 2I) or (E, I).
        down_bias: (E, H), added before the routing weight is applied.
        dynamic: for int8 weights, round each row that meets them to int8 as well, with a scale of its own; the
            gradients are those without the rounding.
        batch_invariant: a row's bits must not depend on the other rows. The CPU's kernels always are so; the GPU's then
            use one tile for every number of rows. None: as the environment variable `MOE_KERNELS_BATCH_INVARIANT` says.
        backend: a backend's name that must serve the call.

    Returns:
        (T, H) in x's dtype.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
    """
    ordinary = backend is None and limit is None and not (interleaved or dynamic)
    if ordinary and plain_call(x, indices, weights, gate_up, down, gate_up_bias, down_bias):
        at_once = unforced_on_cpu("fused_experts", "_unchecked")
        if at_once is not None:
            out = at_once(x, indices, weights, gate_up, down, gate_up_bias, down_bias, activation, transposed)
            if out is not None:
                return out
    x, gate_up, down, gate_up_bias, down_bias = under_autocast(  # type: ignore[assignment]
        x, gate_up, down, gate_up_bias, down_bias
    )
    validation.check_fused_experts(
        x, indices, weights, gate_up, down, activation, limit, interleaved, transposed, gate_up_bias, down_bias, dynamic
    )
    weights = weights.to(weight_dtype(x))
    if isinstance(gate_up, QuantizedWeight) and isinstance(down, QuantizedWeight):
        return fused_experts_quantized(
            x,
            indices,
            weights,
            gate_up.data,
            gate_up.scales,
            down.data,
            down.scales,
            gate_up_bias,
            down_bias,
            gate_up.format,
            activation,
            limit,
            interleaved,
            dynamic,
            needs_grad(x, weights, gate_up_bias, down_bias),
            backend,
            batch_invariant,
        )[0]
    assert isinstance(gate_up, Tensor) and isinstance(down, Tensor)
    save = needs_grad(x, weights, gate_up, down, gate_up_bias, down_bias)
    return _op(
        x,
        indices,
        weights,
        gate_up,
        down,
        gate_up_bias,
        down_bias,
        activation,
        limit,
        interleaved,
        transposed,
        save,
        backend,
        batch_invariant,
    )[0]
