"""Compiles the kernels that Triton's tests launch, while the GPU does other things: a plugin of pytest.

    export MOE_COMPILE_FOR=$(python benchmarks/gpu/compile_tests.py)     # this GPU, in JSON
    PYTHONPATH=benchmarks python -m pytest -p gpu.compile_tests -k triton tests/ops tests/backends

The tests run on CPU tensors. A launch compiles its kernel for that GPU, into Triton's folder on disk, and computes
nothing, so what the tests say means nothing: what they compare is whatever the memory held. A test that fails of it
before its last launch leaves the rest to be compiled when it really runs. The GPU itself is not touched.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from moe_kernels.backends.triton import platform  # noqa: E402

ASKED = "MOE_COMPILE_FOR"


def this_gpu() -> str:
    """Return what Triton compiles for here, and what the tiles are chosen by."""
    from triton.runtime import driver

    target = driver.active.get_current_target()
    return json.dumps(
        {"target": [target.backend, target.arch, target.warp_size], "device": vars(platform.gpu(0))},
    )


class AbsentGpu:
    """What Triton asks of a driver as long as it only compiles."""

    def __init__(self, backend: str, arch: int | str, warp_size: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget(backend, arch, warp_size)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_only(asked: str) -> None:
    """Make every launch in this process a compilation, for a GPU as `this_gpu` describes it."""
    # Of a name other than "cpu", so that the tests are those of a GPU, in its order.
    os.environ["MOE_TEST_DEVICE"] = "cpu:0"
    os.environ.pop("TRITON_INTERPRET", None)
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    import moe_kernels.testing
    from moe_kernels.backends import triton as backend

    gpu = json.loads(asked)
    driver.set_active(AbsentGpu(*gpu["target"]))
    device, launch = platform.Device(**gpu["device"]), JITFunction.run

    def compile_for_launch(self: Any, *arguments: Any, **options: Any) -> Any:
        return launch(self, *arguments, **options | {"warmup": True})

    def supports(op: str, *tensors: torch.Tensor) -> str | None:
        served = op in backend.IMPLEMENTED and all(
            tensor.dtype in backend.DTYPES for tensor in tensors if tensor.is_floating_point()
        )
        return None if served else f"nothing to compile for {op}"

    def compare(*arguments: Any, **options: Any) -> bool:
        return True

    JITFunction.run = compile_for_launch
    platform.device_of = lambda tensor: device
    backend.supports = supports
    moe_kernels.testing.assert_close = torch.equal = compare  # type: ignore[assignment]


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Keep the order of the tests: those that must run come first."""
    from xdist.scheduler import LoadScheduling

    return LoadScheduling(config, log)


if ASKED in os.environ:
    compile_only(os.environ[ASKED])

if __name__ == "__main__":
    print(this_gpu())
