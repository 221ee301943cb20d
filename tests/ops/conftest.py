"""Which backends and dtypes the op tests run on."""

from __future__ import annotations

import pytest
import torch

from moe_kernels.registry import BACKENDS, OPS, why_not

# Sizes that every op is tested over: T tokens, E experts, K experts per token ("E" is K = E).
TOKENS = (0, 1, 3, 63, 1000)
EXPERTS = (1, 8, 64)
CHOICES = (1, 2, 8, "E")


def shapes() -> list[tuple[int, int, int]]:
    """Return the distinct (T, E, K) with K at most E."""
    found = {(T, E, E if K == "E" else K) for T in TOKENS for E in EXPERTS for K in CHOICES}
    return sorted((T, E, K) for T, E, K in found if K <= E)


def backend_cases() -> list[tuple[str, torch.dtype]]:
    """Return the (backend, dtype) pairs that work on this machine's CPU."""
    # The ops with quantized weights choose for themselves (test_quantized.py): a backend may lack them.
    plain = [op for op in OPS if not op.endswith("_quantized")]
    cases = []
    for backend in BACKENDS:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if all(why_not(backend.name, op, torch.empty(0, dtype=dtype)) is None for op in plain):
                cases.append((backend.name, dtype))
    return cases


def _name(value: object) -> str:
    return str(value).removeprefix("torch.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.fixturenames
    if {"T", "E", "K"} <= set(names):
        metafunc.parametrize("T,E,K", shapes(), ids=lambda v: str(v))
    if {"backend", "dtype"} <= set(names):
        metafunc.parametrize("backend,dtype", backend_cases(), ids=_name)
    elif "backend" in names:
        metafunc.parametrize("backend", list(dict.fromkeys(name for name, _ in backend_cases())))
