"""Byte sizes as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Share of the free memory that the slots and the whole store may take for reads to go through the page cache.
PAGE_CACHE_SHARE = 0.7
CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
# Of version 2 and 1: the files of a control group's limit and of what it has taken.
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
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
    """Return the bytes of memory that this process may use at most: the machine's, or a control group's lower limit."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        raise ValueError("memory: a percentage needs a system that tells its memory; give a size such as 6GiB")
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (_number(folder / name) for folder in _control_groups() for name, _ in LIMITS)
    return min([total, *(limit for limit in limits if limit is not None)])


def free_memory() -> int | None:
    """Return the bytes that can be taken without swapping; None where the system does not tell.

    Control groups' limits count, of either version, less what a group has taken.
    """
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    free = next(1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvailable:"))
    for folder in _control_groups():
        for limit, used in LIMITS:
            most, taken = _number(folder / limit), _number(folder / used)
            if most is not None and taken is not None:
                free = min(free, max(0, most - taken))
    return free


def _number(path: Path) -> int | None:
    """Return what a file says; None where there is none, or it says "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def fits_page_cache(store_bytes: int, budget: int, free: int | None) -> bool:
    """Whether the free memory (None: unknown) holds a store beside the slots, so that the page cache serves it."""
    return free is not None and store_bytes + budget <= PAGE_CACHE_SHARE * free


def _control_groups() -> list[Path]:
    """Return the folders that may describe this process's memory limit: its groups', and those of all above them."""
    root = CONTROL_GROUPS
    folders = {root, root / "memory"}
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            own = root / "memory" / path.lstrip("/")
        elif not controllers:
            own = root / path.lstrip("/")
        else:
            continue
        folders |= {own, *(above for above in own.parents if above.is_relative_to(root))}
    return sorted(folders)
