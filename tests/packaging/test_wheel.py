"""A wheel made from a source distribution, with pip's build isolation, has everything that it needs."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_wheel_from_source_distribution(tmp_path: Path) -> None:
    run("setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path, folder=ROOT)
    (source,) = tmp_path.glob("*.tar.gz")
    run("-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, source, folder=tmp_path, MOE_KERNELS_CUDA="off")
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0].split("-")[0] for name in names} == {"moe_kernels", "specmoe"}
    assert {"moe_kernels/py.typed", "moe_kernels/_build.json", "specmoe/py.typed"} <= set(names)

    program = "import moe_kernels, specmoe; print(moe_kernels.__file__, moe_kernels.available_backends()['cpu'])"
    said = run("-c", program, folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert said.split() == [str(tmp_path / "site" / "moe_kernels" / "__init__.py"), "None"]
