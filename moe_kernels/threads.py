"""Whose threads the CPU kernels run on: torch's own OpenMP team where it can be had, else a pool of ours."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SETTING = "MOE_KERNELS_THREADS"
CHOICES = ("torch", "own")


def borrow_torch_threads(core: Any) -> None:
    """Have the native core run its tasks on torch's threads, unless `MOE_KERNELS_THREADS=own`.

    Args:
        core: the native module.

    Raises:
        ValueError: the variable has another value than "torch" or "own".
    """
    choice = os.environ.get(SETTING, "torch")
    if choice not in CHOICES:
        raise ValueError(f"{SETTING}: expected {' or '.join(CHOICES)}, got {choice!r}")
    core.borrow_team((torch_team() or 0) if choice == "torch" else 0)


@contextmanager
def own_threads(core: Any) -> Iterator[None]:
    """Run the native core's tasks on its own pool meanwhile, in the whole process."""
    core.borrow_team(0)
    try:
        yield
    finally:
        borrow_torch_threads(core)


def torch_team() -> int | None:
    """Return the address of `GOMP_parallel` in the OpenMP runtime that torch uses; None where there is no such thing.

    The runtimes of GNU, LLVM and Intel have it on Linux.
    """
    if not sys.platform.startswith("linux"):
        return None
    # Among the process's global symbols torch's comes first, or what was loaded before it to take its place.
    for library in (None, Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"):
        try:
            function = ctypes.CDLL(None if library is None else str(library)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(function, ctypes.c_void_p).value
    return None
