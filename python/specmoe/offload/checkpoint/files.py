"""The safetensors files of a checkpoint, read in slices without a memory map.

A file is [8 bytes, the header's size][header: JSON][data]; the header names each tensor's dtype, shape and bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# No header is larger; what claims more is another kind of file.
LARGEST_HEADER = 100 << 20
# What tells two checkpoints apart without reading all of them.
SAMPLES = 16
SAMPLE_BYTES = 64 << 10


class CheckpointError(ValueError):
    """A checkpoint lacks something, is damaged, or of a kind that is not known; the message names the file."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: file, dtype, shape, and the offset of its first byte."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Checkpoint:
    """A directory with `config.json` and safetensors files; tensors are read when they are asked for.

    Args:
        folder: the directory.

    Attributes:
        config: what `config.json` says.
        entries: every tensor by name.

    Raises:
        CheckpointError: a file is missing, cut or of another kind.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = _read_json(self.folder / "config.json")
        self.entries: dict[str, Entry] = {}
        for path in _weight_files(self.folder):
            self.entries.update(_read_header(path))
        if not self.entries:
            raise CheckpointError(f"checkpoint {self.folder}: expected tensors, got none")

    def read(self, name: str, index: int | None = None) -> Tensor:
        """Read a tensor, or the one part of it that has this index in its first dimension.

        Raises:
            CheckpointError: there is no such tensor, or the file ends too early.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"checkpoint {self.folder}: expected a tensor {name}, found none")
        offset, nbytes, shape = entry.offset, entry.nbytes, entry.shape
        if index is not None:
            nbytes //= shape[0]
            offset, shape = offset + index * nbytes, shape[1:]
        data = bytearray(nbytes)
        with entry.path.open("rb") as file:
            file.seek(offset)
            if file.readinto(data) != nbytes:
                raise CheckpointError(f"checkpoint {entry.path}: it ends within {name}: it was cut")
        if not nbytes:
            return torch.empty(shape, dtype=entry.dtype)
        return torch.frombuffer(data, dtype=torch.uint8).view(entry.dtype).view(shape)

    def fingerprint(self) -> str:
        """Return a short text that changes with the weights: of every file its size, its header and samples of it."""
        digest = hashlib.sha256()
        for path in sorted({entry.path for entry in self.entries.values()}):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for i in range(SAMPLES):
                    file.seek(i * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()[:24]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint: expected {path}, found no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"checkpoint: {path}: expected an object, got {type(value).__name__}")
    return value


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted({folder / str(name) for name in _read_json(index).get("weight_map", {}).values()})
        missing = [path.name for path in files if not path.is_file()]
        if missing:
            raise CheckpointError(f"checkpoint {folder}: {len(missing)} files are missing, the first is {missing[0]}")
        return files
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"checkpoint {folder}: expected .safetensors files, found none")
    return files


def _read_header(path: Path) -> dict[str, Entry]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else LARGEST_HEADER + 1
            header = json.loads(file.read(length)) if length <= LARGEST_HEADER else None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: it cannot be read: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"checkpoint {path}: it is no safetensors file, or was cut")
    entries = {}
    for name, value in header.items():
        if name == "__metadata__":
            continue
        begin, end = value["data_offsets"]
        if 8 + length + end > size:
            raise CheckpointError(f"checkpoint {path}: expected {8 + length + end} bytes, got {size}: {name} was cut")
        if value["dtype"] in DTYPES:
            entries[name] = Entry(path, DTYPES[value["dtype"]], tuple(value["shape"]), 8 + length + begin)
    return entries
