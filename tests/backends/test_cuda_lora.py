"""grouped_lora of the CUDA backend, forward and every gradient, against a loop over groups in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from moe_kernels import grouped_lora, grouped_lora_
from moe_kernels.backends.cuda.operands import operands_problem
from moe_kernels.testing import assert_close, relative_error

BF16, F16 = torch.bfloat16, torch.float16
H, O = 136, 72


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Autograd and the emulation share one thread."""
    with torch.autograd.set_multithreading_enabled(False):
        yield


@pytest.fixture(params=["wgmma", "mma"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The instruction of the products, on a Hopper, which the emulated device is."""
    monkeypatch.setenv("MOE_KERNELS_CUDA_PRODUCTS", request.param)
    return request.param


def draw(N: int, G: int, R: int, dtype: torch.dtype, mixed: bool, device: str) -> tuple[list[torch.Tensor], ...]:
    """Return [x, A, B], [groups, scaling] and [ranks] or []; a fifth of the rows have no group, the last group no row.

    Where ranks are mixed, the padding behind them is NaN.
    """
    generator = torch.Generator().manual_seed(N + R)
    x = torch.randn(N, H, generator=generator)
    A = torch.randn(G, R, H, generator=generator) * H**-0.5
    B = torch.randn(G, O, R, generator=generator) * R**-0.5
    groups = torch.randint(0, max(G - 1, 1), (N,), generator=generator, dtype=torch.int32)
    groups = torch.where(torch.rand(N, generator=generator) < 0.2, G + groups, groups)
    scaling = torch.rand(G, generator=generator) + 0.5
    ranks = [torch.randint(0, R + 1, (G,), generator=generator, dtype=torch.int32)] if mixed else []
    if mixed:
        padding = torch.arange(R) >= ranks[0][:, None]
        A[padding], B.transpose(1, 2)[padding] = torch.nan, torch.nan
    numbers = [t.to(device, dtype) for t in (x, A, B)]
    return numbers, [groups.to(device), scaling.to(device)], [r.to(device) for r in ranks]


def loop(x, A, B, groups, scaling, ranks, kind=None):
    """The delta of each group's rows in turn; with `kind`, in that dtype and its roundings, as PEFT computes it."""
    x, A, B = (t.to(kind or torch.float64) for t in (x, A, B))
    out = x.new_zeros(x.shape[0], B.shape[1])
    for g in range(A.shape[0]):
        rows = torch.where(groups == g)[0]
        kept = int(ranks[0][g]) if ranks else A.shape[1]
        out = out.index_add(0, rows, (x[rows] @ A[g, :kept].T @ B[g, :, :kept].T * scaling[g]).to(out.dtype))
    return out


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("mixed", [False, True], ids=["one-rank", "mixed"])
@pytest.mark.parametrize("N,G,R", [(0, 3, 8), (1, 1, 16), (70, 4, 40)], ids=["N0-G3-R8", "N1-G1-R16", "N70-G4-R40"])
def test_grouped_lora(N, G, R, mixed, dtype, products, device):
    (x, A, B), (groups, scaling), ranks = draw(N, G, R, dtype, mixed, device)
    leaves = [t.requires_grad_() for t in (x, A, B, scaling)]
    wide = [t.detach().cpu().double().requires_grad_() for t in leaves]
    given = {"ranks": ranks[0] if ranks else None}

    out = grouped_lora(x, A, B, groups, scaling, **given, backend="cuda")
    want = loop(*wide[:3], groups.cpu(), wide[3], [r.cpu() for r in ranks])
    assert_close(out.cpu(), want)
    grad = torch.randn(N, O, generator=torch.Generator().manual_seed(1)).to(dtype)
    out.backward(grad.to(device))
    want.backward(grad.double())
    terms = float(torch.linalg.vector_norm(grad * want.detach()))
    for name, leaf, other in zip(("x", "A", "B", "scaling"), leaves, wide, strict=True):
        theirs = torch.zeros_like(other) if other.grad is None else torch.nan_to_num(other.grad)
        assert_close(leaf.grad.cpu(), theirs, dtype, what=name, scale=terms if name == "scaling" else 0.0)


def test_in_place_adds_before_it_rounds(products, device):
    (x, A, B), (groups, scaling), _ = draw(40, 3, 16, BF16, False, device)
    base = torch.randn(40, O, generator=torch.Generator().manual_seed(2)).to(device, BF16)
    want = base.double() + loop(x, A, B, groups, scaling.double(), [])
    with torch.no_grad():
        assert grouped_lora_(base, x, A, B, groups, scaling, backend="cuda") is base
    # Half a unit of the last of 8 bits, and what the digits between the products and the sums in float32 leave.
    assert ((base.double() - want).abs() <= 2**-8 * want.abs() + 3e-5).all()


def test_the_error_is_below_that_of_the_loop(products, device):
    (x, A, B), (groups, scaling), _ = draw(300, 4, 16, BF16, False, device)
    want = loop(x, A, B, groups, scaling.double(), []).cpu()
    loops = loop(x, A, B, groups, scaling, [], kind=BF16)
    ours = grouped_lora(x, A, B, groups, scaling, backend="cuda")
    assert relative_error(ours.cpu(), want) < relative_error(loops.cpu(), want)


def test_infinities_stay(products, device):
    x, A, B = (torch.ones(*shape, dtype=BF16, device=device) for shape in ((2, 40), (1, 8, 40), (1, 8, 8)))
    x[0, 7] = torch.inf
    got = grouped_lora(x, A, B, torch.zeros(2, dtype=torch.int32, device=device), backend="cuda")
    assert torch.equal(got.cpu(), torch.tensor([[torch.inf], [320.0]]).to(BF16).expand(2, 8))


def test_a_rank_that_is_no_whole_piece_is_refused():
    problem = operands_problem(torch.empty(3, 16, dtype=BF16), torch.empty(2, 5, 16, dtype=BF16))
    assert problem is not None and "divisible by 8" in problem and "(2, 5, 16)" in problem
