"""Writing a store: to a temporary file, synced, then renamed: complete or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from .layout import (
    ALIGN,
    DTYPES,
    END_MAGIC,
    MAGIC,
    Blob,
    ExpertKey,
    Frame,
    PackingError,
    StoreError,
    StoreLayout,
    TensorSpec,
    checksum,
    pack_frame,
)
from .packing import pack

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be deleted there, which protects it as the lock does elsewhere.
    fcntl = None  # type: ignore[assignment]


def build_store(
    path: str | Path,
    keys: Sequence[ExpertKey],
    expert: Callable[[ExpertKey], Mapping[str, Tensor]],
    *,
    source: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> StoreLayout:
    """Write every expert to `path`, replacing what is there.

    Args:
        path: where the store shall be; its folder must exist.
        keys: the experts, in file order; all have the same tensors.
        expert: returns the tensors of one expert, without the experts' dimension.
        source: free text for the header.
        progress: called with (experts written, experts in all).

    Raises:
        StoreError: the disk is too small, or an expert's tensors differ from the first one's.
    """
    path = Path(path)
    if not keys:
        raise ValueError("build_store: keys: expected at least one expert, got none")
    first = expert(keys[0])
    layout = StoreLayout.plan(tensor_specs(first), list(keys), source)
    free = shutil.disk_usage(path.parent).free
    if layout.file_bytes > free:
        raise StoreError(f"store {path}: expected {layout.file_bytes} free bytes in {path.parent}, got {free}")
    remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("xb") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            _write(file, path, layout, expert, first, progress)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return layout


def remove_leftovers(path: str | Path) -> list[Path]:
    """Delete unfinished files of earlier builds of `path` whose process is gone; return them."""
    path = Path(path)
    return remove_unlocked(path.parent.glob(f".{path.name}.*.tmp"))


def remove_unlocked(unfinished: Iterable[Path]) -> list[Path]:
    """Delete those of some unfinished files that no living builder holds; return them."""
    removed = []
    for leftover in unfinished:
        try:
            with leftover.open("rb") as file:
                if fcntl is not None:
                    # A living builder holds the lock.
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()
        except (BlockingIOError, FileNotFoundError, PermissionError):
            continue
        removed.append(leftover)
    return removed


def _write(
    file: BinaryIO,
    path: Path,
    layout: StoreLayout,
    expert: Callable[[ExpertKey], Mapping[str, Tensor]],
    first: Mapping[str, Tensor],
    progress: Callable[[int, int], None] | None,
) -> None:
    blob = np.zeros(layout.blob_bytes, dtype=np.uint8)
    for index, key in enumerate(layout.keys):
        stored = stored_form(blob, layout, expert(key) if index else first, f"store {path}: {key}")
        layout.blobs[key] = Blob(layout.blobs[key].offset, checksum(stored.data))
        file.seek(layout.blobs[key].offset)
        file.write(stored.data)
        if progress is not None:
            progress(index + 1, len(layout.blobs))
    write_frame(file, layout)


def write_frame(file: BinaryIO, layout: StoreLayout) -> None:
    """Write what surrounds the blobs: preamble, header and footer."""
    header = layout.header()
    frame = Frame(len(header), checksum(header), layout.file_bytes, layout.version)
    file.seek(layout.file_bytes - ALIGN)
    file.write(pack_frame(END_MAGIC, frame))
    file.seek(0)
    file.write(pack_frame(MAGIC, frame))
    file.write(header)


def stored_form(blob: np.ndarray, layout: StoreLayout, tensors: Mapping[str, Tensor], where: str) -> np.ndarray:
    """Return one expert's bytes as the store holds them; `blob` (bytes) holds those of a slot afterwards.

    Raises:
        StoreError: the tensors are not what the layout says.
        PackingError: they cannot be packed.
    """
    fill_blob(blob, layout.tensors, tensors, where)
    if not layout.packing:
        return blob
    try:
        return pack(blob, [(spec.offset, spec.offset + spec.nbytes) for spec in layout.tensors])
    except ValueError as error:
        raise PackingError(f"{where}: cannot be packed: {error}; build the store without packing") from error


def fill_blob(blob: np.ndarray, specs: Sequence[TensorSpec], tensors: Mapping[str, Tensor], where: str) -> None:
    """Lay one expert's tensors into `blob` (bytes), as `specs` says.

    Raises:
        StoreError: names, shapes or dtypes differ from the specification.
    """
    if set(tensors) != {spec.name for spec in specs}:
        raise StoreError(f"{where}: expected the tensors {[s.name for s in specs]}, got {sorted(tensors)}")
    for spec in specs:
        tensor = tensors[spec.name]
        got = (tuple(tensor.shape), _dtype_name(spec.name, tensor))
        if got != (spec.shape, spec.dtype):
            raise StoreError(f"{where}: {spec.name}: expected {spec.dtype} {spec.shape}, got {got[1]} {got[0]}")
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy(force=True)
        blob[spec.offset : spec.offset + spec.nbytes] = raw


def tensor_specs(tensors: Mapping[str, Tensor]) -> list[TensorSpec]:
    """Describe the tensors of one expert, in their order."""
    return [TensorSpec(name, tuple(t.shape), _dtype_name(name, t)) for name, t in tensors.items()]


def _dtype_name(name: str, tensor: Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"build_store: {name}: expected one of the dtypes {sorted(DTYPES)}, got {dtype}")
    return dtype


def sync_folder(folder: Path) -> None:
    """Make the rename itself last; systems that cannot open a folder do it on their own."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
