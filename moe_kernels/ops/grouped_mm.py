"""grouped_mm: each row times its expert's matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moe_kernels import validation
from moe_kernels.ops.grouped_mm_quantized import grouped_mm_quantized
from moe_kernels.ops.registration import define, under_autocast, weight_dtype
from moe_kernels.quantized_weights import QuantizedWeight
from moe_kernels.registry import kernel


def _run(
    x: Tensor,
    w: Tensor,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    base: Tensor | None,
    backend: str | None,
    batch_invariant: bool | None,
) -> Tensor:
    call = kernel("grouped_mm", backend, x, w, batch_invariant=batch_invariant)
    return call(x, w, offsets, transposed, row_token, bias, row_scale, slot_row, base)


def _shapes(
    x: Tensor,
    w: Tensor,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    *_: Any,
) -> Tensor:
    rows = x.shape[0] if row_token is None else row_token.shape[0]
    return x.new_empty(rows if slot_row is None else slot_row.shape[0], w.shape[2] if transposed else w.shape[1])


def _run_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    need_x: bool,
    need_w: bool,
    need_bias: bool,
    need_row_scale: bool,
    backend: str | None,
) -> tuple[Tensor, ...]:
    call = kernel("grouped_mm", backend, x, w, backward=True)
    return call(
        grad,
        x,
        w,
        offsets,
        transposed,
        row_token,
        bias,
        row_scale,
        slot_row,
        need_x,
        need_w,
        need_bias,
        need_row_scale,
    )


def _backward_shapes(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    need_x: bool,
    need_w: bool,
    need_bias: bool,
    need_row_scale: bool,
    *_: Any,
) -> tuple[Tensor, ...]:
    E, O = w.shape[0], w.shape[2] if transposed else w.shape[1]
    N = x.shape[0] if row_token is None else row_token.shape[0]
    return (
        x.new_empty(x.shape if need_x else (0,)),
        w.new_empty(w.shape if need_w else (0,)),
        w.new_empty((E, O) if need_bias else (0,)),
        x.new_empty((N,) if need_row_scale else (0,), dtype=weight_dtype(x)),
    )


_backward_op = define(
    "grouped_mm_backward",
    "(Tensor grad, Tensor x, Tensor w, Tensor offsets, bool transposed, Tensor? row_token, Tensor? bias, "
    "Tensor? row_scale, Tensor? slot_row, bool need_x, bool need_w, bool need_bias, bool need_row_scale, "
    "str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _backward_shapes,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, offsets, transposed, row_token, bias, row_scale, slot_row, _, backend, _ = inputs
    ctx.save_for_backward(x, w, offsets, row_token, bias, row_scale, slot_row)
    ctx.options = (transposed, backend)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, w, offsets, row_token, bias, row_scale, slot_row = ctx.saved_tensors
    transposed, backend = ctx.options
    need = [ctx.needs_input_grad[i] for i in (0, 1, 5, 6)]
    grads = _backward_op(grad, x, w, offsets, transposed, row_token, bias, row_scale, slot_row, *need, backend)
    gx, gw, gb, gs = (g if needed else None for g, needed in zip(grads, need, strict=True))
    return gx, gw, None, None, None, gb, gs, None, grad if ctx.needs_input_grad[8] else None, None, None


_op = define(
    "grouped_mm",
    "(Tensor x, Tensor w, Tensor offsets, bool transposed, Tensor? row_token, Tensor? bias, Tensor? row_scale, "
    "Tensor? slot_row, Tensor? base, str? backend, bool? batch_invariant) -> Tensor",
    _run,
    _shapes,
    setup_context=_setup_context,
    backward=_backward,
)


def grouped_mm(
    x: Tensor,
    w: Tensor | QuantizedWeight,
    offsets: Tensor,
    *,
    transposed: bool = False,
    row_token: Tensor | None = None,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    slot_row: Tensor | None = None,
    base: Tensor | None = None,
    dynamic: bool = False,
    batch_invariant: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Multiply each row by its expert's matrix: y[n] = row_scale[n] · (x[n] · w[e(n)]ᵀ + bias[e(n)]).

    Args:
        x: (N, H) rows sorted by expert; or tokens (T, H), with `row_token` as the gather.
        w: (E, O, H), or (E, H, O) with `transposed`; x's dtype. Read as it lies, never copied. Or an `Nf4Weight` or
            `Int8Weight`, which gets no gradient.
        offsets: (E+1) int32; expert e owns the rows offsets[e] to offsets[e+1].
        transposed: see `w`.
        row_token: (N) int32, the token that each row reads.
        bias: (E, O), x's dtype.
        row_scale: (N) float32.
        slot_row: (T, K) int32; the result is then (T, O): the sum of each token's rows in slot order, in float32.
        base: a tensor of the result's shape that is added to it.
        dynamic: for an int8 weight, round each row of x to int8 as well, with a scale of its own; the gradients are
            those without the rounding.
        batch_invariant: a row's bits must not depend on the other rows. The CPU's kernels always are so; the GPU's then
            use one tile for every number of rows. None: as the environment variable `MOE_KERNELS_BATCH_INVARIANT` says.
        backend: a backend's name that must serve the call.

    Returns:
        (N, O), or (T, O) with `slot_row`, in x's dtype. Rows from offsets[E] on are zero.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
    """
    x, w, bias, base = under_autocast(x, w, bias, base)  # type: ignore[assignment]
    validation.check_grouped_mm(x, w, offsets, transposed, row_token, bias, row_scale, slot_row, base, dynamic)
    if row_scale is not None:
        row_scale = row_scale.to(weight_dtype(x))
    if isinstance(w, QuantizedWeight):
        return grouped_mm_quantized(
            x,
            w.data,
            w.scales,
            offsets,
            row_token,
            bias,
            row_scale,
            slot_row,
            base,
            w.format,
            dynamic,
            backend,
            batch_invariant,
        )
    return _op(x, w, offsets, transposed, row_token, bias, row_scale, slot_row, base, backend, batch_invariant)
