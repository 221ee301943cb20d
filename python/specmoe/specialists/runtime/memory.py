"""What this process has in memory, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
# malloc.h
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20


def resident_memory() -> int:
    """Returns the bytes that this process has in memory now, 0 where the system does not tell."""
    return _told("VmRSS")


def peak_memory() -> int:
    """Returns the most bytes that this process has had in memory, 0 where the system does not tell."""
    return _told("VmHWM")


def give_back() -> None:
    """Returns freed memory to the system: glibc keeps pieces of it for later otherwise."""
    gc.collect()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def keep_large_blocks_apart() -> None:
    """Has every block of 1 MiB and more returned to the system when it is freed, in this process from now on.

    glibc raises its limit up to 32 MiB as blocks are freed. The weights that a forward dequantizes, one after another,
    then leave holes between small blocks that stay, and the process grows while it answers.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") and hasattr(libc, "mallopt") else None


def _told(name: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
