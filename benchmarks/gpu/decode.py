"""The expert MLP of few tokens, in a CUDA graph, with the experts that it reads changing from call to call."""

from __future__ import annotations

import functools
from typing import Any

import torch
from peers import Arm, Tokens
from torch import Tensor

from gpu import arms, shapes
from gpu.check import check_forward
from gpu.context import Context
from gpu.results import Row
from moe_kernels.quantized_weights import QuantizedWeight, quantize_int8, quantize_nf4

# `arm` of a row is "BACKEND FORMAT" where the weights are quantized.
FORMATS = {"nf4": quantize_nf4, "int8": quantize_int8}


def _calls(arm: Arm, given: list[Tokens]) -> list[Any]:
    return [functools.partial(arm.forward, one) for one in given]


def decode(context: Context, row: Row) -> None:
    """bfloat16; the floor is that of reading the distinct experts hit."""
    shape, device = context.models[row.case], context.device
    row.sizes = shape._asdict()
    gate_up, down = shapes.weights(shape, device)
    given = shapes.rotated(shape, row.T, device)
    row.operations = shape.operations(row.T)
    row.nbytes = shapes.experts_hit(given) * shape.expert_values * 2
    with torch.no_grad():
        arm = arms.arm(row.arm, gate_up, down)
        factor = arms.PEERS_TOLERANCE if row.arm in arms.PEERS else 1.0
        row.error = max(check_forward(arm.forward(one), one, gate_up, down, factor) for one in given[:2])
        context.time(row, context.measure_graph(_calls(arm, given)))


@functools.lru_cache(maxsize=1)
def _packed(shape: shapes.Shape, kind: str, device: torch.device) -> tuple[list[Tensor], list[QuantizedWeight]]:
    """Draw the weights and quantize them, once for the rows that follow each other."""
    plain = list(shapes.weights(shape, device))
    return plain, [FORMATS[kind](weight) for weight in plain]


def forget() -> None:
    """Free what was kept for the next row."""
    _packed.cache_clear()


def quantized(context: Context, row: Row) -> None:
    """NF4 or int8 weights; `ratio` is the time of the same backend with bfloat16 weights over it."""
    name, _, kind = row.arm.partition(" ")
    shape, device = context.models[row.case], context.device
    row.sizes = shape._asdict()
    (gate_up, down), packed = _packed(shape, kind, device)
    given = shapes.rotated(shape, row.T, device)
    hit = shapes.experts_hit(given)
    row.operations = shape.operations(row.T)
    row.nbytes = hit * sum(weight.nbytes for weight in packed) / shape.E
    with torch.no_grad():
        arm, plain = arms.arm(name, *packed), arms.arm(name, gate_up, down)
        # The format's own error is no error of the kernel: the reference has the values that the bytes stand for.
        values = [weight.dequantize(shapes.DTYPE) for weight in packed]
        # ×2: a kernel may round those values to bfloat16, or scale sums of the unrounded ones.
        row.error = check_forward(arm.forward(given[0]), given[0], *values, 2.0)
        del values
        context.time(row, context.measure_graph(_calls(arm, given)))
        without = context.measure_graph(_calls(plain, given))
    row.ratio, row.ratio_of = without.seconds / row.seconds, "times faster than bfloat16"
