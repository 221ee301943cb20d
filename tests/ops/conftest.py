"""Which backends, dtypes and device the op tests run on.

`MOE_TEST_DEVICE=cuda` runs them on a GPU. Where there is none, the Triton kernels run in Triton's interpreter: slowly,
so that only some of the shapes belong to the default run.
"""

from __future__ import annotations

import os

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
# The ops of a file of tests, where they are not the one that the file is named after. The quantized ones choose for
# themselves (test_quantized.py): a backend may lack them.
PLAIN = tuple(op for op in OPS if not op.endswith("_quantized"))
OPS_OF = {"test_permute": ("permute", "unpermute"), **{f"test_{op}": (op,) for op in OPS if op != "permute"}}


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        given = getattr(item, "callspec", None)
        if given is None or "triton" not in (given.params.get("backend"), given.params.get("engine")):
            continue
        shape = tuple(given.params.get(name) for name in "TEK")
        if DEVICE == "cpu" and None not in shape and shape not in INTERPRETED:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def on_the_device():
    """Let factories without a device make tensors on the tests' device."""
    with torch.device(DEVICE):
        yield
