"""One validator per op; only the public functions call them.

Every error names op, argument, what was expected and what came.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.native import native, view
from moe_kernels.quantized_weights import QuantizedWeight

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int32, torch.int64)
SCORES = ("softmax", "sigmoid")
GATED_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "gpt_oss")
PLAIN_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
# int32 is what offsets and rows are stored in.
MAX_ROWS = 2**31 - 1


def fail(op: str, argument: str, expected: object, got: object, error: type[Exception] = ValueError) -> None:
    raise error(f"{op}: {argument}: expected {expected}, got {got}")


def _is_tensor(op: str, argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        fail(op, argument, "a tensor", type(value).__name__, TypeError)


def check_shape(op: str, argument: str, value: Tensor, expected: dict[str, int]) -> None:
    """Require the shape whose named sizes are given; a size of -1 is free."""
    _is_tensor(op, argument, value)
    _check_sizes(op, argument, value.shape, expected)


def _check_sizes(op: str, argument: str, shape: torch.Size, expected: dict[str, int]) -> None:
    # Written out: several shapes are checked in each call, and this is a third of the time that a generator takes.
    fits = len(shape) == len(expected)
    if fits:
        for want, have in zip(expected.values(), shape, strict=True):
            if want != have and want != -1:
                fits = False
    if not fits:
        named = ", ".join(name if size == -1 else f"{name}={size}" for name, size in expected.items())
        fail(op, argument, f"shape ({named})", tuple(shape))


def check_weight_shape(op: str, argument: str, value: Tensor | QuantizedWeight, expected: dict[str, int]) -> None:
    """Like `check_shape` for a weight, which may be quantized."""
    if not isinstance(value, (Tensor, QuantizedWeight)):
        fail(op, argument, "a tensor or a quantized weight", type(value).__name__, TypeError)
    _check_sizes(op, argument, value.shape, expected)


def check_dtype(op: str, argument: str, value: Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if value.dtype not in allowed:
        names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
        fail(op, argument, f"dtype {names}", str(value.dtype).removeprefix("torch."), TypeError)


def check_device(op: str, argument: str, value: Tensor | QuantizedWeight, like: Tensor) -> None:
    if value.device != like.device:
        fail(op, argument, f"device {like.device}", value.device)


def check_choice(op: str, argument: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        fail(op, argument, "one of " + ", ".join(map(repr, choices)), repr(value))


def check_range(op: str, argument: str, value: int, low: int, high: int | None = None) -> None:
    if value < low or (high is not None and value > high):
        fail(op, argument, f"an integer in [{low}, {'...' if high is None else high}]", value)


def _may_read(value: Tensor) -> bool:
    """Whether reading a value is free of a device sync and of a graph break."""
    return value.device.type == "cpu" and not torch.compiler.is_compiling() and not _is_fake(value)


def _is_fake(value: Tensor) -> bool:
    return type(value) is not Tensor and not isinstance(value, torch.nn.Parameter)


def _lowest(value: Tensor) -> int:
    """The least of integers on a CPU. A reduction of torch costs as much as the smallest of the ops."""
    module = native()[0]
    if module is None or not value.is_contiguous():
        return int(value.min())
    return module.lowest(view(value))


def check_indices(op: str, indices: Tensor) -> None:
    """Require (T, K) integers, none of them negative (read on CPU only: elsewhere it would cost a sync)."""
    _is_tensor(op, "indices", indices)
    if indices.dim() != 2:
        fail(op, "indices", "shape (T, K)", tuple(indices.shape))
    check_dtype(op, "indices", indices, INTEGERS)
    if indices.numel() > MAX_ROWS:
        fail(op, "indices", f"at most {MAX_ROWS} rows", indices.numel())
    if indices.numel() and _may_read(indices):
        lowest = _lowest(indices)
        if lowest < 0:
            fail(op, "indices", "no negative expert index", lowest)


def check_plan(op: str, offsets: Tensor, row_token: Tensor | None, slot_row: Tensor | None, like: Tensor) -> None:
    _is_tensor(op, "offsets", offsets)
    if offsets.dim() != 1 or offsets.numel() < 1:
        fail(op, "offsets", "shape (E+1)", tuple(offsets.shape))
    for name, value in (("offsets", offsets), ("row_token", row_token), ("slot_row", slot_row)):
        if value is not None:
            _is_tensor(op, name, value)
            check_dtype(op, name, value, (torch.int32,))
            check_device(op, name, value, like)


def _check_quantized(op: str, weights: dict[str, Tensor | QuantizedWeight], transposed: bool, dynamic: bool) -> None:
    """What a call's weights and the options that only one kind of weight has must have in common."""
    (first_name, first), *others = weights.items()
    kind = first.format if isinstance(first, QuantizedWeight) else "a tensor"
    for name, value in others:
        other = value.format if isinstance(value, QuantizedWeight) else "a tensor"
        if other != kind:
            fail(op, name, f"the format of {first_name}, {kind}", other)
    if transposed and kind != "a tensor":
        fail(op, "transposed", "False for quantized weights, which are stored as (E, O, H) only", True)
    if dynamic and kind != "int8":
        fail(op, "dynamic", f"False where the weights are not int8 but {kind}", True)


def check_topk_gating(
    logits: Tensor,
    k: int,
    score: str,
    bias: Tensor | None,
    num_groups: int,
    top_groups: int,
    noise: Tensor | None,
    mask: Tensor | None,
) -> None:
    op = "topk_gating"
    check_shape(op, "logits", logits, {"T": -1, "E": -1})
    check_dtype(op, "logits", logits, FLOATS)
    T, E = logits.shape
    check_range(op, "k", k, 1, E)
    check_choice(op, "score", score, SCORES)
    if num_groups < 1 or E % num_groups:
        fail(op, "num_groups", f"a divisor of E={E}", num_groups)
    check_range(op, "top_groups", top_groups, 1, num_groups)
    if k > top_groups * (E // num_groups):
        fail(op, "k", f"at most the {top_groups * (E // num_groups)} experts of {top_groups} groups", k)
    if bias is not None:
        check_shape(op, "bias", bias, {"E": E})
        check_dtype(op, "bias", bias, FLOATS)
        check_device(op, "bias", bias, logits)
    if noise is not None:
        check_shape(op, "noise", noise, {"T": T, "E": E})
        check_dtype(op, "noise", noise, FLOATS)
        check_device(op, "noise", noise, logits)
    if mask is not None:
        check_shape(op, "mask", mask, {"T": T})
        check_dtype(op, "mask", mask, (torch.bool,))
        check_device(op, "mask", mask, logits)


def check_route(indices: Tensor, num_experts: int) -> None:
    check_indices("route", indices)
    check_range("route", "num_experts", num_experts, 1)


def check_permute(x: Tensor, offsets: Tensor, row_token: Tensor, slot_row: Tensor) -> None:
    op = "permute"
    check_shape(op, "x", x, {"T": -1, "H": -1})
    check_dtype(op, "x", x, FLOATS)
    check_plan(op, offsets, row_token, slot_row, x)
    check_shape(op, "plan.slot_row", slot_row, {"T": x.shape[0], "K": -1})
    check_shape(op, "plan.row_token", row_token, {"N": slot_row.numel()})


def check_unpermute(rows: Tensor, slot_row: Tensor, weights: Tensor | None) -> None:
    op = "unpermute"
    check_shape(op, "plan.slot_row", slot_row, {"T": -1, "K": -1})
    check_shape(op, "rows", rows, {"N": slot_row.numel(), "H": -1})
    check_dtype(op, "rows", rows, FLOATS)
    check_device(op, "plan", slot_row, rows)
    if weights is not None:
        T, K = slot_row.shape
        check_shape(op, "weights", weights, {"T": T, "K": K})
        check_dtype(op, "weights", weights, FLOATS)
        check_device(op, "weights", weights, rows)


def check_grouped_mm(
    x: Tensor,
    w: Tensor | QuantizedWeight,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    base: Tensor | None,
    dynamic: bool = False,
) -> None:
    op = "grouped_mm"
    check_shape(op, "x", x, {"N" if row_token is None else "T": -1, "H": -1})
    check_dtype(op, "x", x, FLOATS)
    H = x.shape[1]
    _check_quantized(op, {"w": w}, transposed, dynamic)
    check_weight_shape(op, "w", w, {"E": -1, "H": H, "O": -1} if transposed else {"E": -1, "O": -1, "H": H})
    if isinstance(w, Tensor):
        check_dtype(op, "w", w, (x.dtype,))
    check_device(op, "w", w, x)
    E, O = w.shape[0], w.shape[2] if transposed else w.shape[1]
    check_plan(op, offsets, row_token, slot_row, x)
    check_shape(op, "offsets", offsets, {"E+1": E + 1})
    N = x.shape[0] if row_token is None else row_token.shape[0]
    if row_token is not None:
        check_shape(op, "row_token", row_token, {"N": -1})
    if bias is not None:
        check_shape(op, "bias", bias, {"E": E, "O": O})
        check_dtype(op, "bias", bias, (x.dtype,))
        check_device(op, "bias", bias, x)
    if row_scale is not None:
        check_shape(op, "row_scale", row_scale, {"N": N})
        check_dtype(op, "row_scale", row_scale, (torch.float32, torch.float64))
        check_device(op, "row_scale", row_scale, x)
    rows_out = N
    if slot_row is not None:
        check_shape(op, "slot_row", slot_row, {"T": -1, "K": -1})
        if slot_row.numel() != N:
            fail(op, "slot_row", f"N={N} entries", slot_row.numel())
        rows_out = slot_row.shape[0]
    if base is not None:
        check_shape(op, "base", base, {"N" if slot_row is None else "T": rows_out, "O": O})
        check_dtype(op, "base", base, (x.dtype,))
        check_device(op, "base", base, x)


def check_fused_experts(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor | QuantizedWeight,
    down: Tensor | QuantizedWeight,
    activation: str,
    limit: float | None,
    interleaved: bool,
    transposed: bool,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    dynamic: bool = False,
) -> None:
    op = "fused_experts"
    check_shape(op, "x", x, {"T": -1, "H": -1})
    check_dtype(op, "x", x, FLOATS)
    T, H = x.shape
    check_indices(op, indices)
    check_shape(op, "indices", indices, {"T": T, "K": -1})
    check_device(op, "indices", indices, x)
    check_shape(op, "weights", weights, {"T": T, "K": indices.shape[1]})
    check_dtype(op, "weights", weights, FLOATS)
    check_device(op, "weights", weights, x)
    _check_quantized(op, {"gate_up": gate_up, "down": down}, transposed, dynamic)
    check_weight_shape(op, "down", down, {"E": -1, "I": -1, "H": H} if transposed else {"E": -1, "H": H, "I": -1})
    E = down.shape[0]
    I = down.shape[1] if transposed else down.shape[2]
    up_shape = {"E": E, "H": H, "2I": -1} if transposed else {"E": E, "2I": -1, "H": H}
    check_weight_shape(op, "gate_up", gate_up, up_shape)
    up_rows = gate_up.shape[2] if transposed else gate_up.shape[1]
    if up_rows not in (I, 2 * I):
        fail(op, "gate_up", f"{2 * I} rows an expert (gate and up) or {I} (up alone), as down has I={I}", up_rows)
    gated = up_rows == 2 * I and I > 0
    check_choice(op, "activation", activation, GATED_ACTIVATIONS if gated else PLAIN_ACTIVATIONS)
    if limit is not None:
        # NaN is not more than zero either.
        if not (isinstance(limit, (int, float)) and limit > 0):
            fail(op, "limit", "a number above 0, or None", limit)
        if not gated or activation == "gpt_oss":
            fail(op, "limit", f"None for {activation!r}" if gated else "None for experts without a gate", limit)
    if interleaved and not gated:
        fail(op, "interleaved", "False for experts without a gate", True)
    for name, value, width in (("gate_up_bias", gate_up_bias, up_rows), ("down_bias", down_bias, H)):
        if value is not None:
            check_shape(op, name, value, {"E": E, "O": width})
    operands = {"gate_up": gate_up, "down": down, "gate_up_bias": gate_up_bias, "down_bias": down_bias}
    for name, operand in operands.items():
        if isinstance(operand, Tensor):
            check_dtype(op, name, operand, (x.dtype,))
        if operand is not None:
            check_device(op, name, operand, x)


def check_stacked(op: str, names: tuple[str, str], up: tuple[int, ...], down: tuple[int, ...]) -> None:
    """Require the shapes (E, 2I or I, H) and (E, H, I) of an expert module's two weights to belong together.

    Args:
        names: what the weights are called in a message.
        up, down: their shapes, turned round where the weights are transposed.
    """
    for name, shape in zip(names, (up, down), strict=True):
        if len(shape) != 3:
            fail(op, name, "three dimensions, one matrix for each expert", shape)
    E, H, I = down
    if up[0] != E or up[2] != H or up[1] not in (I, 2 * I):
        fail(op, names[0], f"(E={E}, {2 * I} or {I} rows, H={H}), as {names[1]} is (E={E}, H={H}, I={I})", up)


def check_grouped_lora(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor | float,
    ranks: Tensor | None,
    base: Tensor | None = None,
) -> None:
    op = "grouped_lora" if base is None else "grouped_lora_"
    check_shape(op, "x", x, {"N": -1, "H": -1})
    check_dtype(op, "x", x, FLOATS)
    N, H = x.shape
    check_shape(op, "A", A, {"G": -1, "R": -1, "H": H})
    G, R = A.shape[:2]
    if G < 1:
        fail(op, "A", "at least one group", tuple(A.shape))
    check_shape(op, "B", B, {"G": G, "O": -1, "R": R})
    check_shape(op, "groups", groups, {"N": N})
    check_dtype(op, "groups", groups, INTEGERS)
    if isinstance(scaling, Tensor):
        check_shape(op, "scaling", scaling, {"G": G})
        check_dtype(op, "scaling", scaling, (torch.float32, torch.float64))
    elif not isinstance(scaling, (int, float)):
        fail(op, "scaling", "a tensor or a number", type(scaling).__name__, TypeError)
    if N > MAX_ROWS:
        fail(op, "x", f"at most {MAX_ROWS} rows", N)
    if N and _may_read(groups):
        lowest = _lowest(groups)
        if lowest < 0:
            fail(op, "groups", "no negative group", lowest)
    if ranks is not None:
        check_shape(op, "ranks", ranks, {"G": G})
        check_dtype(op, "ranks", ranks, (torch.int32,))
        if _may_read(ranks):
            for rank in (int(bound) for bound in torch.aminmax(ranks)):
                if not 0 <= rank <= R:
                    fail(op, "ranks", f"values in [0, R={R}]", rank)
    if base is not None:
        check_shape(op, "base", base, {"N": N, "O": B.shape[1]})
    for name, other in (("A", A), ("B", B), ("base", base)):
        if other is not None:
            check_dtype(op, name, other, (x.dtype,))
    given = {"A": A, "B": B, "groups": groups, "scaling": scaling, "ranks": ranks, "base": base}
    for name, argument in given.items():
        if isinstance(argument, Tensor):
            check_device(op, name, argument, x)
