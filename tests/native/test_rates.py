"""The machine's own rates, which the benchmarks' floors are made of."""

from __future__ import annotations

import pytest
import torch

from moe_kernels.native import core, native, view

module, reason = native()
pytestmark = pytest.mark.skipif(module is None, reason=str(reason))
KINDS = module.product_kinds() if module else []


@pytest.mark.parametrize("kind", KINDS)
def test_product_rate(kind):
    # From a slow ARM core to tiles on many threads; a loop that the compiler removed would be far above.
    assert 1e8 < core().product_rate(kind, 1) < 1e14


def test_kinds_are_what_the_processor_has():
    features = core().cpu_features()
    assert "scalar" in KINDS
    assert {kind for kind in KINDS if kind != "scalar"} == {name for name, there in features.items() if there}


def test_an_unknown_kind_names_the_known():
    with pytest.raises(RuntimeError, match=f"product_rate: kind: expected one of {', '.join(KINDS)}, got 'none'"):
        core().product_rate("none", 1)


def test_read_rate():
    buffer = torch.ones(2**22)
    assert 1e8 < core().read_rate(view(buffer), 2) < 1e13


@pytest.mark.parametrize("buffer", [torch.ones(100), torch.ones(2**12, 2**12).t()], ids=["short", "transposed"])
def test_read_rate_wants_a_large_contiguous_buffer(buffer):
    with pytest.raises(RuntimeError, match="read_rate: buffer: expected contiguous, of at least 4194304 bytes, got"):
        core().read_rate(view(buffer), 1)
