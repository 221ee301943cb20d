"""Byte sizes as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Share of the free memory that the slots and the whole store may take for reads to go through the page cache.
PAGE_CACHE_SHARE = 0.7
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter + "b"] = 1000**_power
    _UNITS[_letter + "ib"] = 1024**_power
_SIZE = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([kmgt]?i?b|%|)", re.IGNORECASE)


def parse_bytes(size: str | int, *, whole: int | None = None, argument: str = "memory") -> int:
    """Return a number of bytes.

    Args:
        size: bytes as an integer, or text such as "6GiB" (1024³), "64 MB" (1000²), "4096" or "75%".
        whole: bytes that a percentage is of; None for the memory of this machine.
        argument: name for the error message.

    Raises:
        ValueError: the text is not a size, or the size is not positive.
    """
    expected = f'{argument}: expected a positive size such as "6GiB", "64MiB" or "75%", got {size!r}'
    if isinstance(size, bool) or not isinstance(size, str | int):
        raise ValueError(expected)
    if isinstance(size, int):
        value = size
    else:
        match = _SIZE.fullmatch(size.strip())
        if match is None or match[2].lower() == "ib":
            raise ValueError(expected)
        number, unit = float(match[1]), match[2].lower()
        if unit == "%":
            if number > 100:
                raise ValueError(f"{expected}: more than all of it")
            value = int(number / 100 * (machine_memory() if whole is None else whole))
        else:
            value = int(number * _UNITS[unit])
    if value <= 0:
        raise ValueError(expected)
    return value


def format_bytes(count: float) -> str:
    """Return a short text such as "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" or abs(count) >= 100 else f"{count:.1f} {unit}"


def machine_memory() -> int:
    """Return the bytes of memory that this process may use at most: the machine's, or its control group's limit."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        raise ValueError("memory: a percentage needs a system that tells its memory; give a size such as 6GiB")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return min(total, int(limit)) if limit.isdigit() else total


def free_memory() -> int | None:
    """Return the bytes that can be taken without swapping; None where the system does not tell.

    A control group's limit counts, of either version, less what the group has taken.
    """
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    free = next(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable:"))
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        for folder in _control_groups():
            try:
                most, taken = (int((folder / name).read_text()) for name in (limit, used))
            except (OSError, ValueError):
                continue
            free = min(free, max(0, most - taken))
    return free


def fits_page_cache(store_bytes: int, budget: int, free: int | None) -> bool:
    """Whether the free memory (None: unknown) holds a store beside the slots, so that the page cache serves it."""
    return free is not None and store_bytes + budget <= PAGE_CACHE_SHARE * free


def _control_groups() -> list[Path]:
    """Return the folders that may describe this process's memory limit."""
    root = Path("/sys/fs/cgroup")
    folders = [root, root / "memory"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folders.append(root / "memory" / path.lstrip("/"))
        elif not controllers:
            folders.append(root / path.lstrip("/"))
    return folders
