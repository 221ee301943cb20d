"""The threads of the native core, torch's and its own: equal bits, callers at once, fork, exit, no work while idle."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from moe_kernels import fused_experts
from moe_kernels.native import core, native
from moe_kernels.testing import expert_inputs
from moe_kernels.threads import CHOICES, borrow_torch_threads, own_threads, torch_team

module, reason = native()
pytestmark = pytest.mark.skipif(module is None, reason=str(reason))


@pytest.fixture(autouse=True, params=CHOICES)
def threads(request):
    if request.param == "torch" and torch_team() is None:
        pytest.skip("torch has no OpenMP team to borrow here")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with own_threads(core()) if request.param == "own" else contextlib.nullcontext():
        yield request.param
    torch.set_num_threads(before)


def _inputs(seed: int = 0):
    return expert_inputs(300, 8, 2, 96, 80, seed=seed).to(torch.float32)


def _step(inputs) -> list[torch.Tensor]:
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs[:5]]
    out = fused_experts(*leaves, backend="cpu")
    out.square().sum().backward()
    return [out.detach(), *(t.grad for t in leaves if t.grad is not None)]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_bits_do_not_depend_on_the_thread_count(count):
    torch.set_num_threads(1)
    alone = _step(_inputs())
    torch.set_num_threads(count)
    for _ in range(5):
        assert _same(_step(_inputs()), alone)


def test_callers_at_once():
    inputs = [_inputs(seed) for seed in range(6)]
    want = [_step(i) for i in inputs]
    wrong: list[int] = []

    def call(which: int) -> None:
        torch.set_num_threads(1 + which % 3)
        for _ in range(20):
            if not _same(_step(inputs[which]), want[which]):
                wrong.append(which)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=120)
    assert not any(caller.is_alive() for caller in callers), "deadlock"
    assert not wrong


def _in_child(work) -> int:
    """Fork, run `work` in the child, and return its exit status; 99 where it hangs."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return 99


def _forward(inputs) -> torch.Tensor:
    with torch.no_grad():
        return fused_experts(*inputs[:5], backend="cpu")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_its_own_pool(threads):
    inputs = _inputs()
    want = _forward(inputs)
    if threads == "own":
        assert core().pool_workers() >= 1

    def work() -> bool:
        started_anew = core().pool_workers() == 0
        return started_anew and torch.equal(_forward(inputs), want) and core().pool_workers() >= 1

    assert _in_child(work) == 0
    assert torch.equal(_forward(inputs), want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_while_other_threads_compute():
    inputs = _inputs()
    want = _forward(inputs)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            _forward(inputs)

    busy = [threading.Thread(target=keep_busy) for _ in range(2)]
    for thread in busy:
        thread.start()
    try:
        statuses = [_in_child(lambda: torch.equal(_forward(inputs), want)) for _ in range(10)]
    finally:
        stop.set()
        for thread in busy:
            thread.join()
    assert statuses == [0] * 10


def test_an_idle_pool_uses_no_processor_time():
    _forward(_inputs())
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


def test_interpreter_exit_with_parked_workers(threads):
    script = """
import torch
from moe_kernels import fused_experts
from moe_kernels.native import core
from moe_kernels.testing import expert_inputs
torch.set_num_threads(3)
fused_experts(*expert_inputs(300, 8, 2, 96, 80).to(torch.float32)[:5], backend="cpu")
print(core().pool_workers())
"""
    environment = {**os.environ, "MOE_KERNELS_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    workers = {"own": "2", "torch": "0"}[threads]
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, workers, "")


def test_the_choice_is_checked(monkeypatch):
    monkeypatch.setenv("MOE_KERNELS_THREADS", "mine")
    with pytest.raises(ValueError, match=r"MOE_KERNELS_THREADS: expected torch or own, got 'mine'"):
        borrow_torch_threads(core())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torch's runtime is borrowed on Linux alone")
def test_on_torch_threads_none_are_added(threads):
    script = """
import os
import torch
from moe_kernels import fused_experts
from moe_kernels.testing import expert_inputs
torch.set_num_threads(3)
inputs = expert_inputs(300, 8, 2, 96, 80).to(torch.float32)
torch.randn(1 << 20).add(1)
before = len(os.listdir("/proc/self/task"))
fused_experts(*inputs[:5], backend="cpu")
print(len(os.listdir("/proc/self/task")) - before)
"""
    environment = {**os.environ, "MOE_KERNELS_THREADS": threads}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.stdout.strip(), done.stderr.strip()) == ({"own": "2", "torch": "0"}[threads], "")
