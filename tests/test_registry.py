"""The choice of a backend, forced and free, and what `python -m moe_kernels` prints."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from moe_kernels import BackendUnavailable, available_backends, fused_experts, registry
from moe_kernels.testing import expert_inputs


def _call(dtype=torch.float32, **options):
    x, indices, weights, gate_up, down, *_ = expert_inputs(3, 4, 2, 6, 4).to(dtype)
    return fused_experts(x, indices, weights, gate_up, down, **options)


def test_available_backends():
    found = available_backends()
    assert set(found) == {b.name for b in registry.BACKENDS}
    assert found["reference"] is None
    assert all(reason is None or (isinstance(reason, str) and reason) for reason in found.values())


def test_unknown_backend():
    with pytest.raises(
        ValueError, match=r"backend: expected one of 'triton', 'cuda', 'cpu', 'reference' or None, got 'rocm'"
    ):
        _call(backend="rocm")


def test_a_forced_backend_never_falls_back():
    with pytest.raises(BackendUnavailable, match=r"fused_experts: backend 'cuda' cannot serve.*usable:.*'reference'"):
        _call(backend="cuda")


def test_the_cpu_backend_says_why_it_refuses_float64():
    with pytest.raises(BackendUnavailable, match="float64|not built"):
        _call(torch.float64, backend="cpu")


def test_the_environment_forces(monkeypatch):
    monkeypatch.setenv("MOE_KERNELS_BACKEND", "reference")
    assert registry.choose("route", None, torch.zeros(1)) == "reference"
    monkeypatch.setenv("MOE_KERNELS_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        _call()


def test_an_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("MOE_KERNELS_BACKEND", "cuda")
    assert registry.choose("route", "reference", torch.zeros(1)) == "reference"


def test_a_failed_launch_names_the_op(monkeypatch):
    def fail(*_):
        raise ValueError("out of resource: shared memory")

    monkeypatch.setattr(registry, "choose", lambda *_, **__: "triton")
    monkeypatch.setattr(registry, "_function", lambda *_: fail)
    with pytest.raises(RuntimeError, match="route: backend 'triton': ValueError: out of resource: shared memory"):
        registry.kernel("route", None, torch.zeros(1))(1, 2)


def test_command_line():
    done = subprocess.run([sys.executable, "-m", "moe_kernels"], capture_output=True, text=True, check=True)
    for backend in registry.BACKENDS:
        assert backend.name in done.stdout
    for op in registry.OPS:
        assert op in done.stdout
