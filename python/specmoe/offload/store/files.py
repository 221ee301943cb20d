"""Large aligned reads past the page cache where the system allows it, through it where not."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_kernels.native import native

from .layout import ALIGN

# Linux alone: macOS and Windows have no O_DIRECT.
_DIRECT = getattr(os, "O_DIRECT", 0)
_BINARY = getattr(os, "O_BINARY", 0)
# A read is cut into pieces of this size, so that one expert alone keeps the disk's queue filled.
PIECE = 1 << 20
# A reader is told of a part of this size as soon as it is there, so that it can check it while the rest is read.
PART = 2 * PIECE
# Pieces under way at once, with io_uring; threads, where there is none.
DEPTH = 16
# Of guesses: enough to keep a disk busy (2 pieces are as fast as 16 on the virtual disks that this was measured on),
# and few, because a demand has its turn when they are there.
GUESSES = 2
THREADS = 4


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
        method: "auto", "io_uring", "threads" (native ones) or "python" (one `preadv` after the other); "auto" takes the
            first of them that works here.

    Attributes:
        mode: "direct", or "buffered (reason)".
        method: what carries the reads out.
        reader: the native reader; None with "python".
        size: bytes, when it was opened.
    """

    def __init__(self, path: str | Path, direct: bool = True, method: str = "auto") -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._calling = threading.local()
        # The parts of reads in the background that are under way, by the offset of the first, and the offsets of those
        # that somebody waits for by now.
        self._background: dict[int, list[int]] = {}
        self._hurried: set[int] = set()
        self._fd, self.mode = self._open(direct)
        self.size = os.fstat(self._fd).st_size
        self.reader: Any = None
        self.method = "python"
        module, reason = native()
        if method != "python" and module is not None:
            try:
                self.reader = module.Reader(
                    self._fd, method, lanes=THREADS, depth=DEPTH, piece_bytes=PIECE, guesses=GUESSES
                )
            except RuntimeError as error:
                self._close_file()
                raise ValueError(f"DirectFile: method: {error}") from error
            self.method = self.reader.method
        elif method not in ("auto", "python"):
            self._close_file()
            raise ValueError(f"DirectFile: method: expected auto or python, got {method!r}: {reason}")

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

    def in_background(self, background: bool) -> None:
        """Let the reads of the calling thread, from now on, stand behind those of others, or no more."""
        self._calling.background = background

    def hurry(self, offset: int) -> None:
        """Let a read at `offset`, begun or about to begin in the background, stand with the others; until `calm`."""
        if self.reader is not None:
            self._hurried.add(offset)
            for number in self._background.get(offset, ()):
                self.reader.promote(number)

    def calm(self, offset: int) -> None:
        """Undo `hurry`: nobody waits for a read at `offset` any more."""
        self._hurried.discard(offset)

    def read_into(
        self, offset: int, target: memoryview, arrived: Callable[[memoryview], object] = lambda part: None
    ) -> None:
        """Fill `target` with the bytes from `offset` on; the other threads run meanwhile.

        Args:
            offset: a multiple of 4096.
            target: a whole number of pages of an `aligned_buffer`.
            arrived: called with the parts of `target`, in order and each once, while the rest may still be read.

        Raises:
            EOFError: the file ends within the range.
            OSError: the system could not read.
        """
        if self.reader is not None:
            self._read_natively(offset, target, arrived)
            return
        done = 0
        while done < len(target):
            count = self._read_once(offset + done, target[done:])
            if count == 0:
                raise EOFError(f"the file ends at byte {offset + done}, {len(target) - done} bytes too early")
            arrived(target[done : done + count])
            done += count

    def _read_natively(self, offset: int, target: memoryview, arrived: Callable[[memoryview], object]) -> None:
        urgent = not getattr(self._calling, "background", False) or offset in self._hurried
        parts = [(begin, target[begin : begin + PART]) for begin in range(0, len(target), PART)]
        numbers = deque(self.reader.submit(offset + begin, part, urgent=urgent) for begin, part in parts)
        if not urgent:
            self._background[offset] = list(numbers)
            if offset in self._hurried:
                # Meanwhile.
                self.hurry(offset)
        try:
            for _, part in parts:
                failure = self.reader.wait(numbers.popleft())
                if failure is not None:
                    code, text = failure
                    raise EOFError(text) if code < 0 else OSError(code, text)
                arrived(part)
        finally:
            if not urgent:
                self._background.pop(offset, None)
            # After a failure, or Ctrl-C: nothing may write into the buffer later on.
            for number in numbers:
                self.reader.cancel(number)
                self.reader.wait(number)

    def _read_once(self, offset: int, target: memoryview) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [target], offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            data = os.read(self._fd, len(target))
        target[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """End the reads under way, and close; may be called twice."""
        if self.reader is not None:
            self.reader.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
