"""Where the CUDA backend's tests run: on a GPU, and on CPU tensors with every thread run by csrc/cuda/emulate.

With `MOE_TEST_DEVICE=cuda` only what a GPU computes: what the CPU does for minutes (emulated blocks, kernels compiled
for GPUs that are not there) is left out.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from moe_kernels.backends import cuda
from moe_kernels.backends.cuda import launch


def _helper() -> ModuleType:
    spec = importlib.util.spec_from_file_location("emulation", Path(__file__).with_name("emulation.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _by_the_cpu(item: pytest.Item) -> bool:
    given = getattr(item, "callspec", None)
    emulated = given is not None and given.params.get("device") == "emulated"
    compiled = item.path == Path(__file__).parent / "triton" / "test_compile.py"
    return emulated or compiled or "emulation" in getattr(item, "fixturenames", ())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("MOE_TEST_DEVICE", "cpu") == "cpu":
        return
    left_out = [item for item in items if _by_the_cpu(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def emulation() -> ModuleType:
    helper = _helper()
    reason = helper.why_not()
    if reason is not None:
        pytest.skip(reason)
    return helper


@pytest.fixture(scope="session")
def emulated_module(emulation: ModuleType, made_once: Callable[..., Path]) -> Any:
    # It takes a minute.
    built = next(made_once("emulated", emulation.build_module).glob("_cuda*"))
    spec = importlib.util.spec_from_file_location("moe_kernels._cuda", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated(emulated_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Let backend="cuda" serve CPU tensors; gives the emulated `moe_kernels._cuda`."""
    monkeypatch.setitem(sys.modules, "moe_kernels._cuda", emulated_module)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(
        cuda, "supports", lambda op, *tensors: None if op in cuda.IMPLEMENTED else f"{op} has no CUDA kernel"
    )
    launch.module.cache_clear()
    yield emulated_module
    launch.module.cache_clear()


@pytest.fixture(params=["emulated", "gpu"])
def device(request: pytest.FixtureRequest) -> str:
    """The device of tensors that backend="cuda" serves."""
    if request.param == "emulated":
        request.getfixturevalue("emulated")
        return "cpu"
    reason = launch.module_problem()
    if reason is not None:
        pytest.skip(reason)
    return "cuda"


@pytest.fixture
def set_order(emulated: Any) -> Iterator[Callable[[int], None]]:
    """Gives a function that sets the order in which emulated threads and blocks take turns, 0 to 2."""
    function = ctypes.CDLL(emulated.__file__).moe_emulate_set_order
    yield lambda order: function(order, ctypes.c_uint64(7))
    function(0, ctypes.c_uint64(0))
