"""The products over expert rows as functions of tensors: the layer between the ops and `moe_kernels._cuda`.

Letters: E experts, O output width, H width of the sum, N rows; plans are contiguous int32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cuda.launch import launch_arguments, module, optional_view, view
from moe_kernels.backends.cuda.operands import as_bias, as_rows


def rows_times_weights(
    x: Tensor,
    w_EOH: Tensor,
    offsets: Tensor,
    row_token: Tensor | None,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return (N, O): row_scale · (x wᵀ + bias), zero for the rows that no expert owns.

    Args:
        w_EOH: (E, O, H), or a view of that shape of a weight that lies as (E, H, O).
        dtype: of the result; float32, or None for x's.
    """
    x, bias = as_rows(x), as_bias(bias)
    out_NO = x.new_empty((x if row_token is None else row_token).shape[0], w_EOH.shape[1], dtype=dtype or x.dtype)
    module().grouped_mm(
        view(x),
        view(w_EOH),
        view(offsets),
        optional_view(row_token),
        optional_view(bias),
        optional_view(row_scale),
        view(out_NO),
        *launch_arguments(x),
    )
    return out_NO


def outer_products(
    a_NO: Tensor, a_token: Tensor | None, b_NH: Tensor, b_token: Tensor | None, offsets: Tensor, transposed: bool
) -> Tensor:
    """Return the sum of a[n] ⊗ b[n] over each expert's rows: (E, O, H), or (E, H, O) with `transposed`."""
    a_NO, b_NH = as_rows(a_NO), as_rows(b_NH)
    first, first_token, second, second_token = a_NO, a_token, b_NH, b_token
    if transposed:
        first, first_token, second, second_token = b_NH, b_token, a_NO, a_token
    out = first.new_empty(offsets.shape[0] - 1, first.shape[1], second.shape[1])
    module().grouped_outer(
        view(first),
        optional_view(first_token),
        view(second),
        optional_view(second_token),
        view(offsets),
        view(out),
        *launch_arguments(first),
    )
    return out


def column_sums(x: Tensor, offsets: Tensor, row_token: Tensor | None = None, row_scale: Tensor | None = None) -> Tensor:
    """Return (E, C): the sum of row_scale · x over each expert's rows, in float32, rounded once."""
    x = as_rows(x)
    out_EC = x.new_empty(offsets.shape[0] - 1, x.shape[1])
    arguments = (view(x), view(offsets), optional_view(row_token), optional_view(row_scale), view(out_EC))
    module().column_sums(*arguments, *launch_arguments(x))
    return out_EC


def sum_by_token(rows_NH: Tensor, row_token: Tensor, offsets: Tensor, T: int) -> Tensor:
    """Return (T, H): the sum of each token's rows in float32, in the order of the rows.

    The plan has no list of a token's rows here, so the rows are sorted by token first; the host learns nothing.
    """
    N = row_token.shape[0]
    owned_N = torch.arange(N, device=row_token.device) < offsets[-1]
    sorted_N, order_N = torch.sort(torch.where(owned_N, row_token, T), stable=True)
    starts = torch.searchsorted(sorted_N, torch.arange(T + 1, device=row_token.device, dtype=sorted_N.dtype))
    out_TH = rows_NH.new_empty(T, rows_NH.shape[1])
    module().token_sums(view(rows_NH), view(order_N), view(starts), view(out_TH), *launch_arguments(rows_NH))
    return out_TH
