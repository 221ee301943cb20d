"""Which backends, dtypes and device the op tests run on.

`MOE_TEST_DEVICE=cuda` runs them on a GPU. Where there is none, the Triton kernels run in Triton's interpreter, which
takes seconds for what others do in a millisecond: there some of the shapes belong to the default run, some more to the
slow one, and the rest runs on GPUs only.

On a GPU Triton has 3,500 kernels to compile for all of it, most of a second each, which
benchmarks/gpu/compile_tests.py begins beforehand. There a sample comes first: the other backends' tests and, of
Triton's, those of the interpreter's default run and the sizes of models, in float32 and bfloat16: 800 kernels. So a run
that is short of time has seen every kernel, and its last lines say how far it came.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import torch

DEVICE = os.environ.get("MOE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read once, when the first kernel is defined.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from moe_kernels.registry import BACKENDS, OPS, why_not  # noqa: E402

# Sizes that every op is tested over: T tokens, E experts, K experts per token ("E" is K = E).
TOKENS = (0, 1, 3, 63, 1000)
EXPERTS = (1, 8, 64)
CHOICES = (1, 2, 8, "E")
# What the interpreter runs of them by default.
INTERPRETED = {(0, 8, 2), (1, 1, 1), (3, 8, 8), (63, 8, 2), (63, 64, 8)}
INTERPRETED_LORA = {(0, 8, 5), (3, 8, 16), (63, 1, 70), (63, 8, 5)}
INTERPRETED_QUANTIZED = {(0, 8, 2), (1, 1, 1), (3, 8, 2)}
# What the slow run adds. Of every dimension there is one that fits a block, and one of several blocks with a remainder:
# a product's rows are cut by expert, into blocks of 32 up to 32 rows an expert, else of 128.
SLOWLY_PRODUCTS = {(1, 8, 2), (1, 64, 8), (3, 64, 2), (63, 1, 1), (63, 8, 8), (63, 64, 64), (1000, 1, 1), (1000, 8, 2)}
SLOWLY_LORA = {(0, 64, 16), (1, 1, 1), (1, 8, 70), (3, 64, 5), (63, 8, 70), (63, 64, 16), (500, 1, 16), (500, 8, 5)}
SLOWLY_LORA |= {(500, 8, 70)}
# Sizes of weights: blocks of up to 128 columns, sums in steps of up to 128.
SLOWLY_EXPERTS, SLOWLY_WEIGHTS = {(128, 256), (192, 384)}, {(128, 256), (192, 320), (320, 640)}
# The kernels that move rows are cut by slots, of which these have many thousands.
NOT_MOVED = {(1000, 64, 8), (1000, 64, 64)}
# Tests that the interpreter leaves to the slow ones altogether.
NOT_INTERPRETED = {
    "test_grouped_mm": ("test_model_sizes",),
    "test_fused_experts": ("test_model_sizes", "test_one_wide_expert"),
    "test_grouped_lora": ("test_model_sizes", "test_error_is_that_of_the_loop", "test_opcheck"),
    "test_quantized": ("test_model_sizes", "test_error_levels", "test_gated_forms"),
    # What PyTorch asks of an op hardly depends on the kernel behind it.
    "test_quantized_torch": ("test_opcheck_fused_experts", "test_opcheck_grouped_mm"),
    "test_compile": ("test_opcheck_fused_experts", "test_opcheck_grouped_mm", "test_opcheck_topk_gating"),
}
# The ops of a file of tests, where they are not the one that the file is named after. The quantized ones choose for
# themselves (`engine`): a backend may lack them.
PLAIN = tuple(op for op in OPS if not op.endswith("_quantized"))
OPS_OF = {"test_permute": ("permute", "unpermute"), **{f"test_{op}": (op,) for op in OPS if op != "permute"}}

# The tests that a GPU runs after all others.
LAST = pytest.StashKey[set[pytest.Item]]()


def shapes() -> list[tuple[int, int, int]]:
    """Return the distinct (T, E, K) with K at most E."""
    found = {(T, E, E if K == "E" else K) for T in TOKENS for E in EXPERTS for K in CHOICES}
    return sorted((T, E, K) for T, E, K in found if K <= E)


def backend_cases(ops: tuple[str, ...]) -> list[tuple[str, torch.dtype]]:
    """Return the (backend, dtype) pairs that serve the ops on the device of the tests."""
    cases = []
    for backend in BACKENDS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if all(why_not(backend.name, op, torch.empty(0, dtype=dtype, device=DEVICE)) is None for op in ops):
                cases.append((backend.name, dtype))
    return cases


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.fixturenames
    module = metafunc.module.__name__.rpartition(".")[2]
    cases = backend_cases(OPS_OF.get(module, PLAIN)) if "backend" in names else []
    if {"T", "E", "K"} <= set(names):
        metafunc.parametrize("T,E,K", shapes(), ids=lambda v: str(v))
    if {"backend", "dtype"} <= set(names):
        metafunc.parametrize("backend,dtype", cases, ids=_name)
    elif "backend" in names:
        metafunc.parametrize("backend", list(dict.fromkeys(name for name, _ in cases)))
    if "engine" in names:
        metafunc.parametrize("engine", ["reference", "cpu", "triton"], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_gpu = DEVICE != "cpu"
    left_out = []
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or "triton" not in (given.params.get("backend"), given.params.get("engine")):
            continue
        slow = _slow_to_interpret(item, given.params)
        if _too_slow_to_interpret(item, given.params) or (on_gpu and _not_in_the_sample(item, given.params, slow)):
            left_out.append(item)
        elif slow and not on_gpu:
            item.add_marker(pytest.mark.slow)
    last = set(left_out)
    items[:] = [item for item in items if item not in last]
    if not on_gpu:
        config.hook.pytest_deselected(items=left_out)
        return
    items += left_out
    config.stash[LAST] = last


def pytest_collection_finish(session: pytest.Session) -> None:
    if LAST not in session.config.stash:
        return
    sample = [item for item in session.items if item not in session.config.stash[LAST]]
    for item in sample:
        item.user_properties.append(("sample", len(sample)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much of the sample has run, and whether all of that has passed."""
    done = dict.fromkeys(("passed", "skipped", "failed", "error"), 0)
    size = 0
    for outcome in done:
        for report in terminalreporter.stats.get(outcome, []):
            drawn = dict(getattr(report, "user_properties", ())).get("sample")  # a file that failed to load has none
            if drawn:
                size, done[outcome] = drawn, done[outcome] + 1
    if size:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in done.items() if count)
        terminalreporter.write_line(f"the sample, {size} tests: {counts}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Skip what the CUDA products refuse: odd sizes, and float32. tests/backends has what they take."""
    try:
        return (yield)
    # opcheck raises its own error around it.
    except Exception as problem:
        told = str(problem)
        if "backend 'cuda' cannot" in told and ("divisible by 8" in told or "takes float16 and bfloat16, got" in told):
            pytest.skip(told)
        raise


def _shape(given: dict[str, object], letters: str = "TEK") -> tuple[object, ...]:
    return tuple(given.get(name) for name in letters)


def _too_slow_to_interpret(item: pytest.Item, given: dict[str, object]) -> bool:
    name = item.originalname  # type: ignore[attr-defined]
    if name in ("test_fused_experts", "test_grouped_mm") and "T" in given:
        return _shape(given) not in INTERPRETED | SLOWLY_PRODUCTS
    if name == "test_grouped_lora":
        return _shape(given, "NGR") not in INTERPRETED_LORA | SLOWLY_LORA
    if name == "test_model_sizes" and "mixed" not in given:
        return _shape(given, "HI") not in SLOWLY_EXPERTS and given.get("size") not in SLOWLY_WEIGHTS
    return name in ("test_permute", "test_unpermute") and _shape(given) in NOT_MOVED


def _not_in_the_sample(item: pytest.Item, given: dict[str, object], slow: bool) -> bool:
    sized = item.originalname == "test_model_sizes"  # type: ignore[attr-defined]
    return given.get("dtype") == torch.float16 or (slow and not sized)


def _slow_to_interpret(item: pytest.Item, given: dict[str, object]) -> bool:
    for letters, kept in (("TEK", INTERPRETED), ("NGR", INTERPRETED_LORA)):
        shape = _shape(given, letters)
        if None not in shape and shape not in kept:
            return True
    # The quantized ones: few shapes, one of the 16-bit types, one of the two kinds of scales.
    if given.get("shape", (0, 8, 2)) not in INTERPRETED_QUANTIZED or given.get("kind") == "nf4-plain":
        return True
    if "engine" in given and given.get("dtype") == torch.float16:
        return True
    module = item.module.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    if item.originalname in NOT_INTERPRETED.get(module, ()):  # type: ignore[attr-defined]
        return True
    if module in ("test_grouped_mm", "test_fused_experts"):
        # In the 16-bit types one shape is enough; of the activations, two in every orientation of the weights.
        if given.get("dtype") in (torch.float16, torch.bfloat16):
            in_few = "activation" not in given and "size" not in given
            return not in_few or _shape(given) not in ((None, None, None), (63, 8, 2))
        turned = given.get("interleaved") or given.get("transposed")
        return bool(turned and given.get("activation") not in ("silu", "gpt_oss"))
    return False


@pytest.fixture
def engine(request):
    """A backend's name; skips where that backend lacks the ops with quantized weights."""
    for op in ("fused_experts_quantized", "grouped_mm_quantized"):
        reason = why_not(request.param, op, torch.empty(0))
        if reason is not None:
            pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture(autouse=True)
def on_the_device():
    """Let factories without a device make tensors on the tests' device."""
    with torch.device(DEVICE):
        yield
