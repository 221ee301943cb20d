"""collapse_pages: the same values at the same addresses."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from moe_kernels import MoELayer
from moe_kernels.pages import HUGE_PAGE, collapse_pages


def test_values_and_addresses_stay():
    weight = torch.nn.Parameter(torch.randn(3 * HUGE_PAGE // 4))
    address, before = weight.data_ptr(), weight.detach().clone()
    moved = collapse_pages([weight, weight])
    assert moved in (0, 2 * HUGE_PAGE, 3 * HUGE_PAGE)
    assert weight.data_ptr() == address and torch.equal(weight.detach(), before)


def test_a_module_trains_on():
    layer = MoELayer(256, 512, 8, 2)
    x = torch.randn(4, 256)
    with torch.no_grad():
        before = layer(x)
        collapse_pages(layer)
        assert torch.equal(_output(layer(x)), _output(before))
    _output(layer(x)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)


def _output(result):
    return result if isinstance(result, torch.Tensor) else result[0]


def test_small_and_foreign_tensors_are_left_alone():
    assert collapse_pages([torch.ones(8), torch.ones(2**20, device="meta"), torch.empty(0)]) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_a_system_that_refuses(monkeypatch):
    monkeypatch.setattr("moe_kernels.pages._MADV_COLLAPSE", 9999)
    assert collapse_pages([torch.zeros(2 * HUGE_PAGE)]) == 0


HUGE = """
import torch, moe_kernels
held = torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
print(sum(int(kib) for kib in __import__("re").findall(r"AnonHugePages: +([0-9]+)", open("/proc/self/smaps").read())))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
@pytest.mark.parametrize("setting", [None, "0"])
def test_large_tensors_come_in_huge_pages_unless_told_otherwise(setting):
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        offered = re.search(r"\[(\w+)\]", file.read())
    if offered is None or offered[1] != "madvise":
        pytest.skip("this system gives such pages to all or to none")
    environment = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    environment |= {} if setting is None else {"THP_MEM_ALLOC_ENABLE": setting}
    run = subprocess.run([sys.executable, "-c", HUGE], env=environment, capture_output=True, text=True, check=True)
    kib = int(run.stdout)
    if setting is None:
        assert kib >= 32 << 10  # the system may lack some of them
    else:
        assert kib < 32 << 10
