"""Which tile of the output a block computes: the plain scheduler, and its search by a warp on emulated blocks."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType


def test_every_row_and_column_once(emulation: ModuleType, tmp_path: Path) -> None:
    program = emulation.build_program(Path(__file__).with_name("schedule.cpp"), tmp_path)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
