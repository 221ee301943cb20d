"""Reading a store: refused when damaged, every read checked, retried, and raised: never zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .builder import build_store, fill_blob
from .files import DirectFile, aligned_buffer
from .layout import (
    ALIGN,
    DTYPES,
    END_MAGIC,
    MAGIC,
    Blob,
    Checksum,
    ExpertKey,
    StoreError,
    StoreLayout,
    checksum,
    unpack_frame,
)
from .packing import unpack

READ_ATTEMPTS = 3


class ExpertStore:
    """An open store; `read_into` may be called from several threads.

    Build one with `ExpertStore.build`, open one with `ExpertStore.open`.
    """

    def __init__(self, file: DirectFile, layout: StoreLayout) -> None:
        self.file = file
        self.layout = layout

    @classmethod
    def build(
        cls,
        layers: Mapping[int, Mapping[str, Tensor]],
        path: str | Path,
        *,
        source: str = "",
        progress: Callable[[int, int], None] | None = None,
    ) -> ExpertStore:
        """Write the experts of some layers to `path` and open it.

        Args:
            layers: for each layer, its tensors with a leading dimension of experts: name to (E, ...).
            path: where the store shall be.
            source: free text for the header.
            progress: called with (experts written, experts in all).
        """
        for layer, tensors in layers.items():
            counts = {name: len(t) for name, t in tensors.items()}
            if len(set(counts.values())) != 1:
                raise ValueError(f"ExpertStore.build: layer {layer}: expected one number of experts, got {counts}")
        keys = [
            ExpertKey(layer, e) for layer, tensors in layers.items() for e in range(len(next(iter(tensors.values()))))
        ]
        build_store(
            path,
            keys,
            lambda key: {name: tensor[key.expert] for name, tensor in layers[key.layer].items()},
            source=source,
            progress=progress,
        )
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, *, verify: str = "header", direct: bool = True) -> ExpertStore:
        """Open a store.

        Args:
            path: the file.
            verify: "header" checks frame, header and file size; "all" also reads and checks every expert.
            direct: read past the page cache where the system allows it.

        Raises:
            FileNotFoundError: there is no such file.
            StoreError: it is not a store, of another version, cut, or damaged; the message names what is affected.
        """
        if verify not in ("header", "all"):
            raise ValueError(f"ExpertStore.open: verify: expected one of 'header', 'all', got {verify!r}")
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"store: no file at {path}")
        file = DirectFile(path, direct)
        try:
            store = cls(file, _read_layout(file))
            if verify == "all":
                store.verify()
        except BaseException:
            file.close()
            raise
        return store

    @property
    def path(self) -> Path:
        return self.file.path

    def hurry(self, key: ExpertKey) -> None:
        """Let the read of an expert, if it is in the background, stand with those that are waited for."""
        self.file.hurry(self.layout.blobs[key].offset)

    def read_into(self, key: ExpertKey, target: memoryview) -> int:
        """Read one expert's blob, check it, and unpack it where it is packed, in up to three attempts.

        Args:
            key: the expert.
            target: `layout.blob_bytes` of an aligned buffer.

        Returns:
            The number of attempts that failed before.

        Raises:
            StoreError: every attempt failed; the message names the expert and the last cause.
        """
        blob = self.layout.blobs.get(key)
        if blob is None:
            raise StoreError(f"store {self.path}: holds no {key}")
        try:
            return self._read_checked(key, blob, target)
        finally:
            self.file.calm(blob.offset)

    def _read_checked(self, key: ExpertKey, blob: Blob, target: memoryview) -> int:
        cause: Exception | None = None
        stored = target[len(target) - self.layout.stored_bytes :]
        for attempt in range(READ_ATTEMPTS):
            digest = Checksum()
            try:
                self.file.read_into(blob.offset, stored, digest.update)
            except (OSError, EOFError) as error:
                cause = error
                continue
            found = digest.intdigest()
            if found == blob.checksum:
                if self.layout.packing:
                    self._unpack(key, target, stored)
                return attempt
            cause = ValueError(f"checksum: expected {blob.checksum:016x}, got {found:016x}")
        raise StoreError(f"store {self.path}: {key} cannot be read: {cause}") from cause

    def _unpack(self, key: ExpertKey, target: memoryview, stored: memoryview) -> None:
        try:
            unpack(target, stored)
        except ValueError as error:
            # The bytes are those that were written: no further attempt can change that.
            raise StoreError(f"store {self.path}: {key} cannot be unpacked: {error}") from error

    def read(self, key: ExpertKey) -> dict[str, Tensor]:
        """Return one expert's tensors in memory of their own."""
        buffer = aligned_buffer(self.layout.blob_bytes)
        self.read_into(key, memoryview(buffer))
        raw = torch.frombuffer(buffer, dtype=torch.uint8)
        return {
            spec.name: raw[spec.offset : spec.offset + spec.nbytes].view(DTYPES[spec.dtype]).view(spec.shape)
            for spec in self.layout.tensors
        }

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read and check every expert.

        Raises:
            StoreError: the first damaged expert.
        """
        buffer = aligned_buffer(self.layout.blob_bytes)
        for index, key in enumerate(self.layout.keys):
            self.read_into(key, memoryview(buffer))
            if progress is not None:
                progress(index + 1, len(self.layout.blobs))

    def require_same(self, key: ExpertKey, tensors: Mapping[str, Tensor]) -> None:
        """Raise StoreError unless the store holds exactly these weights for the expert."""
        where = f"store {self.path}: {key}"
        if key not in self.layout.blobs:
            raise StoreError(f"store {self.path}: holds no {key}")
        blob = np.zeros(self.layout.blob_bytes, dtype=np.uint8)
        fill_blob(blob, self.layout.tensors, tensors, where)
        if self.layout.packing:
            # Unpacking is much quicker than packing.
            there = self.read(key)
            fill_blob(held := np.zeros_like(blob), self.layout.tensors, there, where)
            same = np.array_equal(held, blob)
        else:
            same = checksum(blob.data) == self.layout.blobs[key].checksum
        if not same:
            raise StoreError(f"{where}: expected the model's weights, got others: it was made from another model")

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> ExpertStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_layout(file: DirectFile) -> StoreLayout:
    where = f"store {file.path}"
    if file.size < ALIGN:
        raise StoreError(f"{where}: expected at least {ALIGN} bytes, got {file.size}: it is no store, or was cut")
    frame = unpack_frame(MAGIC, _read(file, 0, ALIGN), f"{where}: preamble")
    layout = None
    if file.size >= ALIGN + frame.header_bytes:
        header = _read(file, ALIGN, frame.header_bytes)
        if checksum(header) != frame.header_checksum:
            raise StoreError(f"{where}: header: checksum does not match: it is damaged")
        try:
            layout = StoreLayout.parse(header)
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{where}: header: not understood: {error}") from error
        if layout.version != frame.version:
            raise StoreError(f"{where}: header: expected version {layout.version}, got {frame.version}: it is damaged")
    if file.size != frame.file_bytes:
        raise StoreError(f"{where}: expected {frame.file_bytes} bytes, got {file.size}{_first_cut(layout, file.size)}")
    if unpack_frame(END_MAGIC, _read(file, file.size - ALIGN, ALIGN), f"{where}: footer") != frame:
        raise StoreError(f"{where}: footer: says other sizes than the preamble: it is damaged")
    assert layout is not None
    return layout


def _first_cut(layout: StoreLayout | None, size: int) -> str:
    if layout is None:
        return ": it was cut within the header"
    cut = [key for key, blob in layout.blobs.items() if blob.offset + layout.stored_bytes > size]
    return f": it was cut: {len(cut)} experts are lost, the first is {cut[0]}" if cut else ": it was cut or grown"


def _read(file: DirectFile, offset: int, nbytes: int) -> bytes:
    buffer = aligned_buffer(nbytes)
    try:
        file.read_into(offset, memoryview(buffer))
    except EOFError as error:
        raise StoreError(f"store {file.path}: {error}") from error
    return bytes(buffer)
