"""Every instruction set that the machine has, and the errors for those that it has not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_kernels.native import native

module, reason = native()
pytestmark = pytest.mark.skipif(module is None, reason=str(reason))
USABLE = module.usable_isas() if module else ["none"]
HERE = Path(__file__).parent


def _run(arguments: list[str], isa: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MOE_KERNELS_ISA": isa}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


# The best one is what the tests of this process run on.
@pytest.mark.parametrize("isa", USABLE[1:])
def test_kernels_on(isa):
    ops = ("test_batch_invariance.py", "test_quantized_batch_invariance.py", "test_grouped_lora.py")
    tests = [
        str(HERE / "test_kernels.py"),
        str(HERE / "test_decoding.py"),
        *(str(HERE.parent / "ops" / name) for name in ops),
    ]
    # Of grouped_lora what has no rows: instruction sets take different ways there in the backward.
    which = "not test_grouped_lora or (cpu and N0)"
    done = _run(["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", which, *tests], isa)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout


@pytest.mark.parametrize("isa", USABLE)
def test_the_forced_one_is_used(isa):
    done = _run(["-c", "from moe_kernels.native import core; print(core().isa())"], isa)
    assert done.stdout.strip() == isa, done.stderr


def test_the_best_is_the_default(monkeypatch):
    monkeypatch.delenv("MOE_KERNELS_ISA", raising=False)
    done = _run(["-c", "from moe_kernels.native import core; print(core().isa())"], "")
    assert done.stdout.strip() == USABLE[0], done.stderr


@pytest.mark.parametrize("isa", ["avx1024", "AVX2"])
def test_an_unknown_one_is_an_error_that_names_the_usable(isa):
    call = "import torch, moe_kernels as m; m.topk_gating(torch.zeros(2, 4), 1, backend='cpu')"
    done = _run(["-c", call], isa)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert f"MOE_KERNELS_ISA: expected one of {', '.join(USABLE)}" in last and f"got '{isa}'" in last
