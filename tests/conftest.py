"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

# Beside other workers, threads that wait should sleep. OpenMP reads it when torch is first imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let a worker that is done take tests from one that is not: some take a minute, thousands a few milliseconds."""
    # On a GPU the order matters: what must be seen comes first.
    if config.getvalue("dist") != "load" or os.environ.get("MOE_TEST_DEVICE", "cpu") != "cpu":
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives `made_once(name, make)`: the folder that `make(folder)` fills in one worker, for which the others wait."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.made"
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                folder.mkdir(exist_ok=True)
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture
def on_the_device() -> Iterator[None]:
    """Lets factories without a device make tensors on that of `MOE_TEST_DEVICE`; without it, as ever."""
    import torch

    device = os.environ.get("MOE_TEST_DEVICE", "cpu")
    with nullcontext() if device == "cpu" else torch.device(device):
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> Iterator[None]:
    """Let Triton's interpreter put its own functions into the language once a launch, not again at every inner call.

    Its inner calls find nothing left to replace, and look for it in a third of the time that a launch takes.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if not (hasattr(interpreter, "_LangPatchScope") and hasattr(interpreter, "_patch_builtin")):
        yield
        return
    patch, restore = interpreter._patch_builtin, interpreter._LangPatchScope.restore
    patched: dict[int, Any] = {}

    def patch_once(package: Any, builder: Any, scope: Any) -> None:
        if id(package) not in patched:
            patched[id(package)] = scope
            patch(package, builder, scope)

    def restore_own(scope: Any) -> None:
        restore(scope)
        for package in [package for package, owner in patched.items() if owner is scope]:
            del patched[package]

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(interpreter, "_patch_builtin", patch_once)
        changed.setattr(interpreter._LangPatchScope, "restore", restore_own)
        yield
