"""Building a store that may be interrupted: what was written is kept, checked and continued.

Beside the store that shall be, `.NAME.partial` holds the experts written so far and `.NAME.partial.log` one line for
each: its checksum. Both are removed when the store is complete. The lock on the partial file keeps a second builder
out, and goes with the process that held it.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
from torch import Tensor

from ..budget import format_bytes
from .builder import fcntl, stored_form, sync_folder, tensor_specs, write_frame
from .layout import Blob, ExpertKey, PackingError, StoreError, StoreLayout, checksum

Progress = Callable[[int, int], None]


def partial_paths(path: str | Path) -> tuple[Path, Path]:
    """Return where the unfinished store and its log are."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    return partial, partial.with_name(f"{partial.name}.log")


def build_resumable(
    path: str | Path,
    keys: Sequence[ExpertKey],
    expert: Callable[[ExpertKey], Mapping[str, Tensor]],
    *,
    fingerprint: str,
    source: str = "",
    groups: tuple[str, ...] = (),
    quantization: str = "",
    packing: str = "",
    progress: Progress | None = None,
    replace: bool = True,
) -> None:
    """Write every expert to `path`; what an earlier, interrupted call has written is not written again.

    Args:
        path: where the store shall be; its folder must exist.
        keys: the experts, in file order; all have the same tensors.
        expert: returns the tensors of one expert.
        fingerprint: of what the weights come from; a partial file with another one is begun again.
        source, groups, quantization, packing: for the header (see `StoreLayout`).
        progress: called with (experts written, experts in all), at first with what was found.
        replace: with False a store that is there by now, from another process, is left as it is.

    Raises:
        StoreError: the disk is full, an expert's tensors differ from the first one's, or another process builds the
            same store. What was written stays, and the next call goes on from there.
        PackingError: an expert cannot be packed; nothing stays.
    """
    path = Path(path)
    if not keys:
        raise ValueError("build_resumable: keys: expected at least one expert, got none")
    try:
        layout = StoreLayout.plan(tensor_specs(expert(keys[0])), list(keys), source, groups, quantization, packing)
    except ValueError as error:
        raise StoreError(f"store {path}: {error}") from error
    partial, log = partial_paths(path)
    try:
        with _open_locked(partial, path) as file:
            if not replace and path.exists():
                partial.unlink()
                log.unlink(missing_ok=True)
                return
            # The header without checksums: the same plan of the same weights.
            plan = f"{fingerprint} {checksum(layout.header()):016x}"
            done = _recover(file, log, layout, plan)
            _require_space(path, file, layout)
            try:
                with log.open("a") as journal:
                    _write_rest(file, journal, layout, expert, done, str(path), progress)
            except PackingError:
                # Going on from here could only end here again.
                partial.unlink()
                log.unlink(missing_ok=True)
                raise
            write_frame(file, layout)
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, path)
            log.unlink(missing_ok=True)
            sync_folder(path.parent)
    except OSError as error:
        # Closing the file tries once more to write what is left, and fails once more: that is caught here too.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StoreError(
            f"store {path}: the disk is full ({error.strerror}); what is written stays in {partial}: make "
            f"{format_bytes(layout.file_bytes)} of room in all and run it again, or delete that file"
        ) from error


def discard_partial(path: str | Path) -> bool:
    """Delete what an interrupted build has left, unless a process still works on it; return whether anything was."""
    partial, log = partial_paths(path)
    if not partial.exists():
        return discard_log(path)
    with _open_locked(partial, Path(path)):
        partial.unlink()
        log.unlink(missing_ok=True)
    return True


def discard_log(path: str | Path) -> bool:
    """Delete the log of a build that was killed when its store was complete; return whether there was one."""
    partial, log = partial_paths(path)
    if partial.exists() or not log.exists():
        return False
    log.unlink(missing_ok=True)
    return True


def _open_locked(partial: Path, path: Path) -> BinaryIO:
    while True:
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        file = os.fdopen(fd, "r+b")
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, the other builder may have finished, and renamed what was opened here.
            if partial.exists() and os.path.samestat(os.fstat(fd), partial.stat()):
                return file
        except BlockingIOError:
            file.close()
            raise StoreError(f"store {path}: another process is building it") from None
        file.close()


def _recover(file: BinaryIO, log: Path, layout: StoreLayout, plan: str) -> int:
    """Return how many experts are there, and whole; the log is cut to them."""
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    sums: list[int] = []
    if lines and lines[0] == json.dumps({"plan": plan}):
        buffer = bytearray(layout.stored_bytes)
        # A line without an end may be half a line.
        for key, line in zip(layout.keys, lines[1:-1], strict=False):
            file.seek(layout.blobs[key].offset)
            whole = file.readinto(buffer) == len(buffer)  # type: ignore[attr-defined]
            if not whole or f"{checksum(buffer):016x}" != line:
                break
            sums.append(int(line, 16))
    else:
        file.truncate(0)
    for key, value in zip(layout.keys, sums, strict=False):
        layout.blobs[key] = Blob(layout.blobs[key].offset, value)
    log.write_text("\n".join([json.dumps({"plan": plan}), *(f"{value:016x}" for value in sums), ""]))
    return len(sums)


def _require_space(path: Path, file: BinaryIO, layout: StoreLayout) -> None:
    status = os.statvfs(path.parent) if hasattr(os, "statvfs") else None
    if status is None:
        return
    held = getattr(os.fstat(file.fileno()), "st_blocks", 0) * 512
    free = status.f_bavail * status.f_frsize
    if layout.file_bytes - held > free:
        raise StoreError(
            f"store {path}: expected {format_bytes(layout.file_bytes - held)} of free space in {path.parent}, got "
            f"{format_bytes(free)}"
        )


def _write_rest(
    file: BinaryIO,
    journal: TextIO,
    layout: StoreLayout,
    expert: Callable[[ExpertKey], Mapping[str, Tensor]],
    done: int,
    where: str,
    progress: Progress | None,
) -> None:
    blob = np.zeros(layout.blob_bytes, dtype=np.uint8)
    keys = layout.keys
    if progress is not None:
        progress(done, len(keys))
    for index in range(done, len(keys)):
        key = keys[index]
        stored = stored_form(blob, layout, expert(key), f"store {where}: {key}")
        value = checksum(stored.data)
        layout.blobs[key] = Blob(layout.blobs[key].offset, value)
        file.seek(layout.blobs[key].offset)
        file.write(stored.data)
        file.flush()
        # The line says that the bytes are there: it comes after them.
        journal.write(f"{value:016x}\n")
        journal.flush()
        if progress is not None:
            progress(index + 1, len(keys))
