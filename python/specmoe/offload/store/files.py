"""Large aligned reads past the page cache where the system allows it, through it where not."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

from .layout import ALIGN

# Linux alone: macOS and Windows have no O_DIRECT.
_DIRECT = getattr(os, "O_DIRECT", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def aligned_buffer(nbytes: int) -> mmap.mmap:
    """Return zeroed private memory that begins at a page: what direct reads need. Untouched pages take no memory."""
    if hasattr(mmap, "MAP_ANONYMOUS"):
        buffer = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                buffer.madvise(mmap.MADV_HUGEPAGE)
            except OSError as error:
                # A kernel built without huge pages; ordinary ones serve.
                if error.errno != errno.EINVAL:
                    raise
        return buffer
    return mmap.mmap(-1, nbytes)


def drop_cached_pages(path: str | Path) -> bool:
    """Ask the system to forget the file's cached pages; return whether it can be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return True


class DirectFile:
    """A read-only file that several threads read at once.

    Args:
        path: the file.
        direct: read past the page cache where the system allows it.

    Attributes:
        mode: "direct", or "buffered (reason)".
        size: bytes, when it was opened.
    """

    def __init__(self, path: str | Path, direct: bool = True) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._fd, self.mode = self._open(direct)
        self.size = os.fstat(self._fd).st_size

    def _open(self, direct: bool) -> tuple[int, str]:
        if not direct:
            reason = "asked for"
        elif not _DIRECT:
            reason = "this system has no O_DIRECT"
        else:
            try:
                fd = os.open(self.path, os.O_RDONLY | _DIRECT)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
                return os.open(self.path, os.O_RDONLY), "buffered (the file system has no O_DIRECT)"
            try:
                # Some file systems accept the flag and refuse the read.
                os.preadv(fd, [aligned_buffer(ALIGN)], 0)
                return fd, "direct"
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EINVAL:
                    raise
                reason = "the file system refuses direct reads"
        return os.open(self.path, os.O_RDONLY | _BINARY), f"buffered ({reason})"

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on; the other threads run meanwhile.

        Args:
            offset: a multiple of 4096.
            target: a whole number of pages of an `aligned_buffer`.

        Raises:
            EOFError: the file ends within the range.
            OSError: the system could not read.
        """
        done = 0
        while done < len(target):
            count = self._read_once(offset + done, target[done:])
            if count == 0:
                raise EOFError(f"the file ends at byte {offset + done}, {len(target) - done} bytes too early")
            done += count

    def _read_once(self, offset: int, target: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [target], offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            data = os.read(self._fd, len(target))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
