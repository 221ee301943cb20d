"""The steps around the products: permute and unpermute, gating, route, grouped_lora."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gpu import shapes
from gpu.check import Wrong
from gpu.context import Context
from gpu.results import Row
from moe_kernels import grouped_lora, permute, route, topk_gating, unpermute
from moe_kernels.testing import TOLERANCE, relative_error

# Calls in one graph of the ops that take microseconds.
IN_A_GRAPH = 20


def _require(row: Row, got: Tensor, want: Tensor, limit: float) -> None:
    row.error = relative_error(got, want)
    if not row.error <= limit:
        raise Wrong(f"relative error {row.error:.2g} exceeds {limit:.2g}")


def permute_rows(context: Context, row: Row) -> None:
    """Gather tokens into rows: every token is read once at least, every row written."""
    shape = context.models[row.case]
    row.sizes = shape._asdict()
    tokens = shapes.tokens(shape, row.T, context.device)
    plan = route(tokens.indices, shape.E, backend="reference")
    N = row.T * shape.K
    row.nbytes = (row.T + N) * shape.H * 2 + 4 * N
    got = permute(tokens.x, plan, backend=row.arm)
    if not torch.equal(got, tokens.x[plan.row_token.long()]):
        raise Wrong("rows differ from x[row_token]")
    del got
    context.time(row, context.measure(lambda: permute(tokens.x, plan, backend=row.arm)))


def unpermute_rows(context: Context, row: Row) -> None:
    """Sum rows back to tokens: every row is read, every token written."""
    shape = context.models[row.case]
    row.sizes = shape._asdict()
    tokens = shapes.tokens(shape, row.T, context.device)
    plan = route(tokens.indices, shape.E, backend="reference")
    N = row.T * shape.K
    rows = torch.randn(N, shape.H, device=context.device).to(shapes.DTYPE)
    row.nbytes = (row.T + N) * shape.H * 2 + 8 * N
    got = unpermute(rows, plan, tokens.routing, backend=row.arm)
    first = plan.slot_row[:64].long()
    want = (rows[first].float() * tokens.routing[:64, :, None]).sum(1)
    _require(row, got[:64], want, TOLERANCE[shapes.DTYPE])
    del got
    context.time(row, context.measure(lambda: unpermute(rows, plan, tokens.routing, backend=row.arm)))


def gating(context: Context, row: Row) -> None:
    """Top-k gating of bfloat16 logits, in a CUDA graph."""
    shape = context.models[row.case]
    row.sizes = shape._asdict()
    torch.manual_seed(4)
    logits = torch.randn(row.T, shape.E, device=context.device).to(shapes.DTYPE)
    row.nbytes = logits.nbytes + 8 * row.T * shape.K
    call = functools.partial(topk_gating, logits, shape.K, renormalize=True, backend=row.arm)
    want = topk_gating(logits, shape.K, renormalize=True, backend="reference")
    got = call()
    if not torch.equal(got.indices, want.indices):
        raise Wrong("indices differ from the reference's")
    _require(row, got.weights, want.weights, 10 * TOLERANCE[torch.float32])
    context.time(row, context.measure_graph([call] * IN_A_GRAPH))


def routing(context: Context, row: Row) -> None:
    """The plan of sorted rows, in a CUDA graph."""
    shape = context.models[row.case]
    row.sizes = shape._asdict()
    indices = shapes.tokens(shape, row.T, context.device).indices
    row.nbytes = 4 * (3 * row.T * shape.K + shape.E + 1)
    call = functools.partial(route, indices, shape.E, backend=row.arm)
    for name, got, want in zip(
        ("offsets", "row_token", "slot_row"), call(), route(indices, shape.E, backend="reference"), strict=True
    ):
        if not torch.equal(got, want):
            raise Wrong(f"{name} differs from the reference's")
    context.time(row, context.measure_graph([call] * IN_A_GRAPH))


def lora(context: Context, row: Row) -> None:
    """grouped_lora; `case` is "G32-R16": G adapters of rank R on H = O = 2048, rows in any order."""
    G, R = (int(part[1:]) for part in row.case.split("-"))
    N, H = row.T, 128 if context.small else 2048
    row.sizes = {"G": G, "R": R, "H": H}
    torch.manual_seed(5)
    device, dtype = context.device, shapes.DTYPE
    x, A, B = (
        torch.randn(size, device=device).mul_(scale).to(dtype)
        for size, scale in (((N, H), 1.0), ((G, R, H), H**-0.5), ((G, H, R), R**-0.5))
    )
    groups = torch.randint(0, G, (N,), device=device, dtype=torch.int32)
    hit = len(groups.unique())
    row.operations = 4.0 * N * R * H
    row.nbytes = (2 * hit * R * H + 2 * N * H) * 2
    call = functools.partial(grouped_lora, x, A, B, groups, 2.0, backend=row.arm)
    few = groups[:64].long()
    shrunk = torch.bmm(A[few].float(), x[:64, :, None].float())
    want = 2.0 * torch.bmm(B[few].float(), shrunk)[:, :, 0]
    with torch.no_grad():
        _require(row, call()[:64], want, TOLERANCE[dtype])
        if device.type == "cuda":
            context.time(row, context.measure_graph([call] * IN_A_GRAPH))
        else:
            context.time(row, context.measure(call))
