"""Reading experts through a memory map, page by page, as programs do that leave caching to the system."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path

from ..store import drop_cached_pages
from ..store.files import PART


class MappedFile:
    """Copies from a map of the whole file; what was copied is let go, so that the page cache serves no second read.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None

    def forget(self) -> None:
        """Begin with a new map and no cached pages."""
        if self._map is not None:
            self._map.close()
        drop_cached_pages(self.path)
        with self.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read_into(
        self, offset: int, target: memoryview, arrived: Callable[[memoryview], object] = lambda part: None
    ) -> None:
        """Fill `target` with the bytes from `offset` on, a whole number of pages (see `DirectFile.read_into`)."""
        assert self._map is not None
        with memoryview(self._map) as whole, whole[offset : offset + len(target)] as lying:
            for begin in range(0, len(target), PART):
                part = target[begin : begin + PART]
                part[:] = lying[begin : begin + PART]
                arrived(part)
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, offset, len(target))
        drop_range(self.path, offset, len(target))


def drop_range(path: Path, offset: int, nbytes: int) -> None:
    """Ask the system to forget cached pages of a part of a file."""
    import os

    if not hasattr(os, "posix_fadvise"):
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, offset, nbytes, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
