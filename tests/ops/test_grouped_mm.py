"""grouped_mm with each of its options, forward and every gradient, against a loop in float64."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import grouped_mm, route
from moe_kernels.testing import assert_close, random_indices

H, O = 33, 21


def _oracle(x, w, offsets, transposed, row_token, bias, row_scale, slot_row, base):
    rows = x if row_token is None else x[row_token.long()]
    ends = offsets.tolist()
    parts = []
    for e in range(len(ends) - 1):
        y = rows[ends[e] : ends[e + 1]] @ (w[e] if transposed else w[e].T)
        if bias is not None:
            y = y + bias[e]
        if row_scale is not None:
            y = y * row_scale[ends[e] : ends[e + 1], None]
        parts.append(y)
    out = torch.cat([*parts, rows.new_zeros(rows.shape[0] - ends[-1], w.shape[2] if transposed else w.shape[1])])
    if slot_row is not None:
        slots = slot_row.reshape(-1)
        picked = out[slots.clamp(min=0).long()] * (slots >= 0)[:, None] if len(slots) else out
        out = picked.view(*slot_row.shape, picked.shape[1]).sum(1)
    return out if base is None else out + base


OPTIONS = {
    "rows": {},
    "transposed": {"transposed": True},
    "gather": {"gather": True},
    "scatter": {"scatter": True, "scale": True},
    "everything": {"gather": True, "scatter": True, "bias": True, "scale": True, "base": True, "transposed": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_grouped_mm(T, E, K, backend, dtype, options):
    if T == 1000 and K == 64 and options and "base" not in options:
        pytest.skip("the largest shape runs with no option and with every option")
    check(T, E, K, backend, dtype, options)


def check(T, E, K, backend, dtype, options, routing="sentinels", H=H, O=O):
    torch.manual_seed(0)
    plan = route(random_indices(T, E, K, routing), E, backend="reference")
    N = T * K

    def draw(wanted, *shape, kind=dtype, scale=1.0):
        return (torch.randn(*shape) * scale).to(kind).requires_grad_() if wanted else None

    def option(name):
        return options.get(name, False)

    transposed = option("transposed")
    leaves = {
        "x": draw(True, T if option("gather") else N, H),
        "w": draw(True, E, *((H, O) if transposed else (O, H)), scale=H**-0.5),
        "bias": draw(option("bias"), E, O),
        "row_scale": draw(option("scale"), N, kind=torch.float32),
        "base": draw(option("base"), T if option("scatter") else N, O),
    }
    plain = {
        "transposed": transposed,
        "row_token": plan.row_token if option("gather") else None,
        "slot_row": plan.slot_row if option("scatter") else None,
    }
    out = grouped_mm(offsets=plan.offsets, backend=backend, **leaves, **plain)
    wide = {k: None if v is None else v.detach().double().requires_grad_() for k, v in leaves.items()}
    want = _oracle(offsets=plan.offsets, **wide, **plain)
    assert_close(out, want)

    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    want.backward(grad.double())
    # The gradient of a row's scale is one sum over O that may cancel: its terms are the measure.
    product = want.detach() if wide["base"] is None else (want - wide["base"]).detach()
    terms = float(torch.linalg.vector_norm(grad * product))
    for name, leaf in leaves.items():
        if leaf is not None:
            scale = terms if name == "row_scale" else 0.0
            assert_close(leaf.grad, wide[name].grad, dtype, what=name, scale=scale)


@pytest.mark.parametrize("routing", ["skewed", "single", "uniform"])
def test_uneven_groups(routing, backend, dtype):
    check(63, 8, 2, backend, dtype, OPTIONS["everything"], routing)


@pytest.mark.parametrize("size", [(128, 256), (256, 128), (320, 640), (520, 1100)], ids=lambda s: f"H{s[0]}-O{s[1]}")
@pytest.mark.parametrize("transposed", [False, True], ids=["row-major", "transposed"])
def test_model_sizes(size, transposed, backend, dtype):
    for T in (5, 300):
        check(T, 8, 2, backend, dtype, {"transposed": transposed, "gather": True}, "uniform", *size)


def test_rows_beyond_the_plan_are_never_read(backend, dtype):
    plan = route(random_indices(63, 8, 2, "sentinels"), 8)
    x = torch.randn(126, H).to(dtype)
    x[int(plan.offsets[-1]) :] = torch.nan
    w = torch.randn(8, O, H).to(dtype)
    out = grouped_mm(x, w, plan.offsets, backend=backend)
    assert torch.isfinite(out).all()
    assert not out[int(plan.offsets[-1]) :].any()


def test_gradcheck():
    torch.manual_seed(0)
    plan = route(random_indices(5, 4, 2, "sentinels"), 4)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    def call(x, w, bias, scale, base):
        return grouped_mm(
            x, w, plan.offsets, row_token=plan.row_token, bias=bias, row_scale=scale, slot_row=plan.slot_row, base=base
        )

    assert torch.autograd.gradcheck(call, (draw(5, 7), draw(4, 3, 7), draw(4, 3), draw(10), draw(5, 3)))
