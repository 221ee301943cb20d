"""What all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

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
