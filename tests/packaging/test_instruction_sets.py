"""Code compiled for one instruction set must not be what the rest of the library links to."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{sysconfig.get_platform()}" / "core"
OBJECTS = sorted(BUILD.glob("CMakeFiles/core.dir/csrc/cpu/isa/*.o"))


@pytest.mark.skipif(not OBJECTS, reason="the native core was not built in this checkout")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm was not found")
@pytest.mark.parametrize("path", OBJECTS or [None], ids=lambda path: path.stem if path else "none")
def test_no_shared_inline_function(path: Path) -> None:
    # An inline function that several files define is kept once. Were that the AVX-512 copy, every machine would run it.
    said = subprocess.run(["nm", "--demangle", path], capture_output=True, text=True, check=True).stdout
    shared = [line for line in said.splitlines() if line[17:18] in {"W", "V", "u"}]
    assert not shared, "\n".join(shared)
