"""A step of decoding in the native core against float64; `test_isa.py` runs this for every instruction set."""

from __future__ import annotations

import pytest
import torch

from moe_kernels.native import native, view, view_or_none
from moe_kernels.testing import assert_close

core, reason = native()
pytestmark = pytest.mark.skipif(core is None, reason=str(reason))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = 1e-6


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows,size", [(1, 16), (3, 48), (70, 256), (0, 32)])
@pytest.mark.parametrize("rounds_first", [False, True])
def test_rms_norm(rows, size, rounds_first, dtype):
    torch.manual_seed(0)
    x, base = (3 * torch.randn(rows, size)).to(dtype), torch.randn(rows, size).to(dtype)
    weight, out = torch.randn(size), torch.empty(rows, size, dtype=dtype)
    for given in (None, base):
        core.rms_norm(view(x), view(weight), EPS, rounds_first, view_or_none(given), view(out), 3)
        wanted = norm(x.double(), weight.double())
        assert_close(out, wanted if given is None else wanted + base.double())
    # Onto itself, as the residual stream is.
    onto = base.clone()
    core.rms_norm(view(x), view(weight), EPS, rounds_first, view(onto), view(onto), 1)
    assert torch.equal(onto, out)


def attention(q, k, v, norms, cos, sin, starts, positions, keys, values, column, window, scale):
    """Attention of one column in float64, row by row."""
    B, N, _, D = keys.shape
    H, out = q.shape[1] // D, torch.empty(q.shape, dtype=torch.float64)

    def turned(x, position):
        return x * cos[position].double() + x.roll(D // 2, -1) * sin[position].double()

    for b in range(B):
        rows_q, rows_k = q[b].view(H, D).double(), k[b].view(N, D).double()
        if norms is not None:
            rows_q, rows_k = (norm(x, w.double()) for x, w in zip((rows_q, rows_k), norms, strict=True))
        rows_q, rows_k = turned(rows_q, positions[b]), turned(rows_k, positions[b])
        first = max(int(starts[b]), column + 1 - window)
        for h in range(H):
            n = h * N // H
            seen = torch.cat((keys[b, n, first:column].double(), rows_k[n : n + 1]))
            said = torch.cat((values[b, n, first:column].double(), v[b].view(N, D)[n : n + 1].double()))
            out[b, h * D : (h + 1) * D] = (scale * seen @ rows_q[h]).softmax(0) @ said
    return out


def case(dtype, B=5, H=6, N=2, D=32, C=50):
    torch.manual_seed(1)
    q, k, v = (torch.randn(B, heads * D).to(dtype) for heads in (H, N, N))
    keys, values = torch.randn(2, B, N, C, D).to(dtype)
    angles = torch.rand(C, D // 2) * 6
    cos, sin = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), 1)
    return {"q": q, "k": k, "v": v, "cos": cos, "sin": sin, "keys": keys, "values": values}


def run(c, norms, starts, positions, column, window, scale=0.3, threads=3):
    out = torch.empty_like(c["q"])
    core.decode_attention(
        view(c["q"]), view(c["k"]), view(c["v"]), *(view_or_none(w) for w in norms or (None, None)), EPS, False,
        view(c["cos"]), view(c["sin"]), view(positions), view(starts), view(c["keys"]), view(c["values"]),
        column, window, scale, view(out), threads,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(6, 2, 32), (3, 3, 64), (4, 1, 160)], ids=str)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("column", [0, 15, 16, 44])
def test_attention(heads, normed, column, dtype):
    H, N, D = heads
    c = case(dtype, H=H, N=N, D=D)
    starts = torch.tensor([0, min(3, column), column, max(0, column - 16), max(0, column - 15)])
    positions = column - starts
    norms = [torch.rand(D) + 0.5, torch.rand(D) + 0.5] if normed else None
    for window in (50, 17, 1):
        given = {name: tensor.clone() for name, tensor in c.items()}
        out = run(given, norms, starts, positions, column, window)
        wanted = attention(
            **c, norms=norms, starts=starts, positions=positions, column=column, window=window, scale=0.3
        )
        # The queries are rounded twice on the way, and the keys that are kept.
        assert_close(out, wanted, scale=1.0)
        assert torch.equal(given["values"][:, :, column], c["v"].view(5, N, D))
        others = [place for place in range(50) if place != column]
        for name in ("keys", "values"):
            assert torch.equal(given[name][:, :, others], c[name][:, :, others])


def test_a_row_does_not_depend_on_the_others_nor_on_threads():
    c = case(torch.float32)
    starts, positions = torch.tensor([0, 3, 9, 1, 0]), torch.tensor([40, 37, 31, 39, 40])
    whole = run({name: t.clone() for name, t in c.items()}, None, starts, positions, 40, 50)
    rows = {name: t[2:3].clone() if len(t) == 5 else t for name, t in c.items()}
    assert torch.equal(run(rows, None, starts[2:3].clone(), positions[2:3].clone(), 40, 50, threads=1), whole[2:3])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"column": 50}, "column"), ({"column": -1}, "column"), ({"window": 0}, "window"),
        ({"starts": torch.tensor([0, 0, 41, 0, 0])}, "row 2"), ({"positions": torch.tensor([0, 50, 0, 0, 0])}, "row 1"),
        ({"starts": torch.tensor([0, 0, -1, 0, 0])}, "row 2"), ({"positions": torch.zeros(4).long()}, "positions"),
        ({"q": torch.zeros(5, 100)}, "q"), ({"k": torch.zeros(5, 32)}, "k"), ({"cos": torch.zeros(50, 31)}, "cos"),
        ({"values": torch.zeros(5, 2, 49, 32)}, "values"), ({"v": torch.zeros(5, 64).bfloat16()}, "v"),
    ],
)  # fmt: skip
def test_refuses(change, says):
    c = case(torch.float32)
    how = {"starts": torch.zeros(5).long(), "positions": torch.zeros(5).long(), "column": 40, "window": 50}
    for name, value in change.items():
        (c if name in c else how)[name] = value
    with pytest.raises(RuntimeError, match=says):
        run(c, None, **how)


def test_sizes_that_the_core_does_not_take():
    x = torch.zeros(2, 24)
    with pytest.raises(RuntimeError, match="multiple of 16, got 24"):
        core.rms_norm(view(x), view(torch.zeros(24)), EPS, False, None, view(x.clone()), 1)
    with pytest.raises(RuntimeError, match="head size: expected a multiple of 32, got 16"):
        run(case(torch.float32, D=16), None, torch.zeros(5).long(), torch.zeros(5).long(), 3, 50)
