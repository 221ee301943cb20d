"""What this process has in memory, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident_memory() -> int:
    """Returns the bytes that this process has in memory now, 0 where the system does not tell."""
    return _told("VmRSS")


def peak_memory() -> int:
    """Returns the most bytes that this process has had in memory, 0 where the system does not tell."""
    return _told("VmHWM")


def give_back() -> None:
    """Returns freed memory to the system: glibc keeps pieces of it for later otherwise."""
    gc.collect()
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _told(name: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
