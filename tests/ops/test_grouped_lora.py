"""grouped_lora, forward and every gradient, against a loop over groups in float64."""

from __future__ import annotations

import math

import pytest
import torch

from moe_kernels import grouped_lora, grouped_lora_
from moe_kernels.registry import why_not
from moe_kernels.testing import assert_close, relative_error

H, O = 33, 21
OPS = torch.ops.moe_kernels


@pytest.fixture
def native():
    """The CPU backend, which these tests are of; skips where it cannot serve."""
    reason = why_not("cpu", "grouped_lora", torch.empty(0))
    if reason is not None:
        pytest.skip(reason)
    return "cpu"


def loop(x, A, B, groups, scaling, ranks=None):
    """The loop that PEFT runs over adapters, in the dtype of its arguments."""
    out = torch.zeros(x.shape[0], B.shape[1], dtype=x.dtype)
    for g in range(A.shape[0]):
        rows = torch.where(groups == g)[0]
        kept = A.shape[1] if ranks is None else int(ranks[g])
        delta = (x[rows] @ A[g, :kept].T) @ B[g, :, :kept].T
        out = out.index_add(0, rows, (delta * scaling[g]).to(x.dtype))
    return out


def draw(N, G, R, dtype, H=H, O=O, sentinels=True, mixed=False, seed=0):
    """Return x, A, B, groups, scaling and ranks; the last group has no rows, if there is more than one."""
    device, drawn = torch.get_default_device(), {"generator": torch.Generator().manual_seed(seed), "device": "cpu"}

    def normal(*shape, scale=1.0):
        return (torch.randn(*shape, **drawn) * scale).to(device, dtype)

    groups = torch.randint(0, max(G - 1, 1), (N,), dtype=torch.int32, **drawn)
    groups = torch.where(torch.rand(N, **drawn) < 0.2, G + groups, groups).to(device)
    scaling = (torch.rand(G, **drawn) + 0.5).to(device)
    ranks = torch.randint(0, R + 1, (G,), dtype=torch.int32, **drawn).to(device) if mixed else None
    return normal(N, H), normal(G, R, H, scale=H**-0.5), normal(G, O, R, scale=R**-0.5), groups, scaling, ranks


def check(N, G, R, backend, dtype, mixed=False, H=H, O=O, **options):
    x, A, B, groups, scaling, ranks = draw(N, G, R, dtype, H, O, mixed=mixed, **options)
    if mixed:
        padding = torch.arange(R) >= ranks[:, None]
        A[padding], B.transpose(1, 2)[padding] = torch.nan, torch.nan
    leaves = [t.requires_grad_() for t in (x, A, B, scaling)]
    wide = [t.detach().double().requires_grad_() for t in leaves]

    out = grouped_lora(x, A, B, groups, scaling, ranks=ranks, backend=backend)
    want = loop(*wide[:3], groups, wide[3], ranks)
    assert out.dtype == dtype
    assert_close(out, want)
    assert not out[groups >= G].any()

    grad = torch.randn(N, O, generator=torch.Generator().manual_seed(1), device="cpu").to(x.device, dtype)
    out.backward(grad)
    want.backward(grad.double())
    terms = float(torch.linalg.vector_norm(grad * want.detach()))
    for name, leaf, other in zip(("x", "A", "B", "scaling"), leaves, wide, strict=True):
        # A group's factor gets one sum that may cancel: its terms are the measure.
        assert_close(leaf.grad, other.grad, dtype, what=name, scale=terms if name == "scaling" else 0.0)
    if mixed:
        assert not A.grad[padding].any()
        assert not B.grad.transpose(1, 2)[padding].any()
    if G > 1:
        assert not any(leaf.grad[-1].any() for leaf in leaves[1:])
    return out.detach()


@pytest.mark.parametrize("mixed", [False, True], ids=["one-rank", "mixed"])
@pytest.mark.parametrize("R", [1, 5, 16, 70], ids=lambda R: f"R{R}")
@pytest.mark.parametrize("G", [1, 8, 64], ids=lambda G: f"G{G}")
@pytest.mark.parametrize("N", [0, 1, 3, 63, 500], ids=lambda N: f"N{N}")
def test_grouped_lora(N, G, R, backend, dtype, mixed):
    check(N, G, R, backend, dtype, mixed)


@pytest.mark.parametrize("mixed", [False, True], ids=["one-rank", "mixed"])
def test_model_sizes(backend, dtype, mixed):
    for N in (5, 300):
        check(N, 4, 16, backend, dtype, mixed, H=320, O=640)


def test_all_rows_in_one_group_or_none(backend, dtype):
    x, A, B, _, scaling, _ = draw(40, 3, 4, dtype)
    one = torch.full((40,), 1)
    wide = [t.double() for t in (x, A, B)]
    assert_close(grouped_lora(x, A, B, one, scaling, backend=backend), loop(*wide, one, scaling.double()))
    x[:] = torch.nan
    assert not grouped_lora(x, A, B, torch.full((40,), 3), scaling, backend=backend).any()
    assert not grouped_lora(x[:0], A, B, one[:0], scaling, backend=backend).numel()


def test_groups_are_int32_or_int64_and_scaling_may_be_a_number(backend, dtype):
    x, A, B, groups, _, _ = draw(40, 3, 4, dtype)
    want = grouped_lora(x, A, B, groups, torch.full((3,), 0.25), backend=backend)
    assert torch.equal(grouped_lora(x, A, B, groups.long(), 0.25, backend=backend), want)


def test_arguments_need_not_be_contiguous(backend, dtype):
    x, A, B, groups, scaling, _ = draw(40, 3, 4, dtype)
    want = grouped_lora(x, A, B, groups, scaling, backend=backend)
    spread = x.T.contiguous().T, A.transpose(1, 2).contiguous().transpose(1, 2), B.mT.contiguous().mT
    other = grouped_lora(*spread, groups.repeat_interleave(2)[::2], scaling, backend=backend)
    assert_close(other, want.double())
    base = torch.zeros(O, 40, dtype=dtype).T
    assert grouped_lora_(base, *spread, groups, scaling, backend=backend) is base
    assert_close(base, want.double())


def test_infinities_stay(backend, dtype):
    x, A, B = torch.ones(2, 40, dtype=dtype), torch.ones(1, 3, 40, dtype=dtype), torch.ones(1, 5, 3, dtype=dtype)
    x[0, 7] = torch.inf
    got = grouped_lora(x, A, B, torch.zeros(2, dtype=torch.int32), backend=backend)
    assert torch.equal(got, torch.tensor([[torch.inf], [120.0]]).to(dtype).expand(2, 5))


def test_one_number_for_all_groups_in_inference_and_then_in_training(backend):
    x, A, B, groups, _, _ = draw(5, 3, 4, torch.float32)
    with torch.inference_mode():
        want = grouped_lora(x, A, B, groups, 0.375, backend=backend)
    got = grouped_lora(x, A.requires_grad_(), B, groups, 0.375, backend=backend)
    assert torch.equal(got, want)
    got.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("R", [3, 16, 40])
def test_the_layout_of_the_factors_changes_no_bit(R, dtype, native):
    x, A, B, groups, scaling, _ = draw(90, 3, R, dtype, H=90, O=70)
    want = grouped_lora(x, A, B, groups, scaling, backend=native)
    groups_last = B.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for a, b in ((A.mT.contiguous().mT, B), (A, B.mT.contiguous().mT), (A, groups_last)):
        assert torch.equal(grouped_lora(x, a, b, groups, scaling, backend=native), want)


@pytest.mark.parametrize("mixed", [False, True], ids=["one-rank", "mixed"])
def test_in_place(backend, dtype, mixed):
    x, A, B, groups, scaling, ranks = draw(100, 8, 5, dtype, mixed=mixed)
    base = torch.randn(100, O).to(dtype)
    want = base.double() + loop(*(t.double() for t in (x, A, B)), groups, scaling.double(), ranks)
    got, version = base.clone(), base._version
    assert grouped_lora_(got, x, A, B, groups, scaling, ranks=ranks, backend=backend) is got
    assert_close(got, want)
    assert torch.equal(got[groups >= 8], base[groups >= 8])
    assert got._version > version


def test_in_place_has_no_gradient(backend):
    x, A, B, groups, scaling, _ = draw(4, 3, 4, torch.float32)
    base = torch.zeros(4, O)
    with pytest.raises(ValueError, match="grouped_lora_: base, x, A, B, scaling: expected .*no_grad.*, got"):
        grouped_lora_(base, x, A.requires_grad_(), B, groups, scaling, backend=backend)
    with torch.no_grad():
        grouped_lora_(base, x, A, B, groups, scaling, backend=backend)
    # What autograd has saved may not change behind its back.
    leaf = torch.ones(4, O, requires_grad=True)
    product = (leaf * base).sum()
    with torch.no_grad():
        grouped_lora_(base, x, A, B, groups, scaling, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def _errors(N, backend, dtype, seed):
    """Return ours over the loop's error of the result and of every gradient, by name."""
    x, A, B, groups, scaling, _ = draw(N, 4, 16, dtype, H=768, O=512, sentinels=False, seed=seed)
    wide = [t.double().requires_grad_() for t in (x, A, B)]
    own = [t.clone().requires_grad_() for t in (x, A, B)]
    users = [t.clone().requires_grad_() for t in (x, A, B)]
    exact = loop(*wide, groups, scaling.double())
    results = {"y": (grouped_lora(*own, groups, scaling, backend=backend), loop(*users, groups, scaling), exact)}
    grad = torch.randn(N, 512, generator=torch.Generator().manual_seed(seed + 1), device="cpu").to(x.device, dtype)
    for out in results["y"]:
        out.backward(grad.to(out.dtype))
    for name, *leaves in zip("xAB", own, users, wide, strict=True):
        results[name] = tuple(leaf.grad for leaf in leaves)
    return {n: relative_error(ours, want) / relative_error(theirs, want) for n, (ours, theirs, want) in results.items()}


@pytest.mark.parametrize("N", [16, 400])
def test_error_is_that_of_the_loop(N, backend, dtype):
    # Of a few rows, one draw's ratio is off by a tenth: three are judged by their geometric mean.
    draws = [_errors(N, backend, dtype, seed) for seed in range(3 if N == 16 else 1)]
    for name in draws[0]:
        ratios = [drawn[name] for drawn in draws]
        assert math.prod(ratios) ** (1 / len(ratios)) <= 1.2, (name, ratios)


@pytest.mark.parametrize("mixed", [False, True], ids=["one-rank", "mixed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("R", [5, 16, 70])
def test_batch_invariance(dtype, R, mixed, native):
    x, A, B, groups, scaling, ranks = draw(200, 6, R, dtype, H=300, O=130, mixed=mixed)

    def run(rows):
        return grouped_lora(x[rows], A, B, groups[rows], scaling, ranks=ranks, backend=native)

    whole = run(slice(None))
    for rows in (slice(0, 1), slice(199, 200), slice(3, 20), slice(0, 64), slice(100, 200)):
        assert torch.equal(run(rows), whole[rows])
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(shuffled), whole[shuffled])
    # The place of a group among the others does not matter either.
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    place = torch.cat([torch.argsort(order), torch.arange(6, 12)])
    moved = [t if t is None else t[order] for t in (A, B, scaling, ranks)]
    again = grouped_lora(x, *moved[:2], place[groups.long()], moved[2], ranks=moved[3], backend=native)
    assert torch.equal(again, whole)


@pytest.mark.parametrize("mixed", [False, True], ids=["one-rank", "mixed"])
def test_batch_invariance_on_request(backend, dtype, mixed):
    if backend == "reference":
        pytest.skip("torch's matmul makes no such promise")
    x, A, B, groups, scaling, ranks = draw(70, 3, 20, dtype, H=1100, mixed=mixed)

    def run(rows):
        given = x[rows], A, B, groups[rows], scaling
        return grouped_lora(*given, ranks=ranks, backend=backend, batch_invariant=True)

    whole = run(slice(None))
    for rows in (
        slice(0, 1),
        slice(69, 70),
        slice(3, 20),
        torch.randperm(70, generator=torch.Generator().manual_seed(0), device="cpu").to(x.device),
    ):
        assert torch.equal(run(rows), whole[rows])


def test_gradients_do_not_depend_on_the_threads(native):
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        x, A, B, groups, scaling, ranks = draw(300, 6, 16, torch.float32, H=300, O=130, mixed=True)
        leaves = [t.requires_grad_() for t in (x, A, B, scaling)]
        grouped_lora(x, A, B, groups, scaling, ranks=ranks, backend=native).square().sum().backward()
        found.append([leaf.grad for leaf in leaves])
    torch.set_num_threads(before)
    for grads in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0], strict=True))


def test_gradcheck():
    x, A, B, groups, scaling, ranks = draw(6, 3, 4, torch.float64, H=5, O=3, mixed=True)
    leaves = [t.double().requires_grad_() for t in (x, A, B, scaling)]
    assert torch.autograd.gradcheck(
        lambda x, A, B, scaling: grouped_lora(x, A, B, groups, scaling, ranks=ranks), leaves, fast_mode=True
    )


def test_opcheck(backend):
    for mixed in (False, True):
        x, A, B, groups, scaling, ranks = draw(7, 3, 4, torch.float32, H=5, O=6, mixed=mixed)
        torch.library.opcheck(
            OPS.grouped_lora_.default, (torch.randn(7, 6), x, A, B, groups, scaling, ranks, backend, None)
        )
        for need in ([True] * 4, [False, True, False, False], [True, False, False, False], [False, False, True, True]):
            args = (torch.randn(7, 6), x, A, B, groups, scaling, ranks, need, backend)
            torch.library.opcheck(OPS.grouped_lora_backward.default, args)
        leaves = [t.requires_grad_() for t in (x, A, B)]
        torch.library.opcheck(
            OPS.grouped_lora.default, (*leaves, groups, scaling.requires_grad_(), ranks, backend, None)
        )


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_fullgraph(compiler):
    torch.compiler.reset()

    def training(x, A, B, groups, scaling, ranks):
        return grouped_lora(torch.relu(x), A, B, groups, scaling, ranks=ranks) + 1

    def inference(x, A, B, groups, scaling, ranks):
        return grouped_lora_(x[:, :O] * 2, x, A, B, groups, 0.5, ranks=ranks) + 1

    compiled = [torch.compile(f, fullgraph=True, backend=compiler) for f in (training, inference)]
    for N in (7, 12, 31):
        x, A, B, groups, scaling, ranks = draw(N, 3, 4, torch.float32, mixed=True)
        args = (x, A, B, groups, scaling, ranks)
        torch.testing.assert_close(compiled[1](*args), inference(*args))
        leaves = [t.requires_grad_() for t in (x, A, B, scaling)]
        mine, theirs = training(*args), compiled[0](*args)
        torch.testing.assert_close(mine, theirs)
        for a, b in zip(*(torch.autograd.grad(y.square().sum(), leaves) for y in (mine, theirs)), strict=True):
            torch.testing.assert_close(a, b)


def test_autocast(backend):
    x, A, B, groups, scaling, _ = draw(9, 3, 4, torch.float32)
    want = grouped_lora(x.bfloat16(), A.bfloat16(), B.bfloat16(), groups, scaling, backend=backend)
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.equal(grouped_lora(x, A, B, groups, scaling, backend=backend), want)


BAD = {
    "x": (dict(x=torch.zeros(6)), ["x", "(N, H)", "(6,)"]),
    "A": (dict(A=torch.zeros(3, 2, 4)), ["A", "(G, R, H=5)", "(3, 2, 4)"]),
    "no group": (dict(A=torch.zeros(0, 2, 5)), ["A", "at least one group", "(0, 2, 5)"]),
    "B": (dict(B=torch.zeros(3, 2, 4)), ["B", "(G=3, O, R=2)", "(3, 2, 4)"]),
    "B dtype": (dict(B=torch.zeros(3, 4, 2).half()), ["B", "float32", "float16"]),
    "A device": (dict(A=torch.zeros(3, 2, 5, device="meta")), ["A", "device cpu", "meta"]),
    "groups": (dict(groups=torch.zeros(5).int()), ["groups", "(N=6)", "(5,)"]),
    "groups dtype": (dict(groups=torch.zeros(6)), ["groups", "int32 or int64", "float32"]),
    "negative": (dict(groups=torch.tensor([0, 1, -2, 0, 1, 2])), ["groups", "no negative group", "-2"]),
    "scaling": (dict(scaling=torch.zeros(2)), ["scaling", "(G=3)", "(2,)"]),
    "scaling dtype": (dict(scaling=torch.zeros(3).half()), ["scaling", "float32", "float16"]),
    "scaling type": (dict(scaling="2"), ["scaling", "a tensor or a number", "str"]),
    "ranks": (dict(ranks=torch.zeros(2).int()), ["ranks", "(G=3)", "(2,)"]),
    "ranks dtype": (dict(ranks=torch.zeros(3).long()), ["ranks", "int32", "int64"]),
    "rank": (dict(ranks=torch.tensor([0, 3, 1]).int()), ["ranks", "[0, R=2]", "got 3"]),
    "negative rank": (dict(ranks=torch.tensor([0, -3, 1]).int()), ["ranks", "[0, R=2]", "got -3"]),
    "base": (dict(base=torch.zeros(6, 3)), ["base", "(N=6, O=4)", "(6, 3)"]),
    "base dtype": (dict(base=torch.zeros(6, 4).half()), ["base", "float32", "float16"]),
}


@pytest.mark.parametrize("change,words", BAD.values(), ids=BAD.keys())
def test_refusals(change, words):
    # On a GPU too: values are read on the CPU only.
    with torch.device("cpu"):
        arguments = {"x": torch.zeros(6, 5), "A": torch.zeros(3, 2, 5), "B": torch.zeros(3, 4, 2)}
        arguments |= {"groups": torch.zeros(6).int(), "scaling": 1.0} | change
    call = grouped_lora_ if "base" in change else grouped_lora
    error = TypeError if words[-1] in ("float16", "float32", "int64", "str") else ValueError
    with pytest.raises(error) as caught:
        call(**arguments)
    for word in (call.__name__ + ":", *words):
        assert word in str(caught.value)
