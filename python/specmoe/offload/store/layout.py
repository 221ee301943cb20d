"""The bytes of a store.

    [preamble 4096][header JSON, padded with blanks to 4096][blob 0][blob 1]...[footer 4096]

- The preamble holds magic, version, alignment, the header's size and checksum, the file's size, and its own checksum
  in its last 8 bytes; the footer holds the same under another magic: a file without it was cut.
- The header holds the tensors of one expert (name, shape, dtype, offset within the blob), the bytes of a blob, and for
  every expert its layer, number, file offset and checksum.
- A blob is one expert: its tensors one after the other, each at a multiple of 64 bytes, padded to 4096. It is read
  whole into one cache slot, so that a slot's tensors are views and nothing is copied. In a store of version 2 blobs are
  packed (packing.py): read into the end of the slot, and unpacked there.

Checksums are XXH3 (64 bit), over padding too: 24 GB/s on one Zen 4 core against 2.3 for CRC-32, so that checking
every read costs less than a tenth of the read. All integers are little-endian.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import xxhash

from .packing import NAME as PACKED
from .packing import packed_bytes

ALIGN = 4096
TENSOR_ALIGN = 64
VERSION = 1
# Of a store whose blobs are packed: readers that know version 1 alone must not take them for weights.
PACKED_VERSION = 2
MAGIC = b"SPECMOE\x00"
END_MAGIC = b"SPECEND\x00"
CHECKSUM_NAME = "xxh3_64"
_FIELDS = struct.Struct("<8sIIQQQ")
_CHECKSUM = struct.Struct("<Q")

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.uint8)
}


class StoreError(OSError):
    """A store is missing something, damaged, or of another kind; the message names file and expert."""


class PackingError(StoreError):
    """An expert's weights are none that can be packed; others would not help."""


class ExpertKey(NamedTuple):
    """Which expert: its layer's position among the MoE layers, and its number there."""

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"expert (layer {self.layer}, expert {self.expert})"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of an expert: shape without the experts' dimension, and byte offset within the blob."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Blob(NamedTuple):
    offset: int
    checksum: int


@dataclass
class StoreLayout:
    """What a store's header says.

    Args:
        tensors: the tensors of one expert, in blob order.
        blob_bytes: bytes of one expert in a slot, and on disk unless they are packed.
        blobs: where each expert lies, and its checksum.
        source: free text that says what the weights are of.
        groups: the names of the layers' expert modules in the checkpoint, where it was made from one.
        quantization: "", "nf4" or "int8".
        packing: "", or what packs the blobs on disk without loss (see packing.py).
    """

    tensors: tuple[TensorSpec, ...]
    blob_bytes: int
    blobs: dict[ExpertKey, Blob] = field(default_factory=dict)
    source: str = ""
    groups: tuple[str, ...] = ()
    quantization: str = ""
    packing: str = ""

    @classmethod
    def plan(
        cls,
        tensors: list[TensorSpec],
        keys: list[ExpertKey],
        source: str = "",
        groups: tuple[str, ...] = (),
        quantization: str = "",
        packing: str = "",
    ) -> StoreLayout:
        """Lay out tensors within a blob and blobs within the file; checksums are zero until written.

        Raises:
            ValueError: tensors of another type than bfloat16 are to be packed.
        """
        if packing and (others := sorted({spec.dtype for spec in tensors} - {"bfloat16"})):
            raise ValueError(f"packing: expected experts in bfloat16, got {', '.join(others)}")
        placed, end = [], 0
        for spec in tensors:
            offset = round_up(end, TENSOR_ALIGN)
            placed.append(TensorSpec(spec.name, tuple(spec.shape), spec.dtype, offset))
            end = offset + spec.nbytes
        blobs = dict.fromkeys(keys, Blob(0, 0))
        layout = cls(tuple(placed), round_up(end, ALIGN), blobs, source, groups, quantization, packing)
        start = ALIGN + len(layout.header())
        for index, key in enumerate(keys):
            layout.blobs[key] = Blob(start + index * layout.stored_bytes, 0)
        return layout

    @property
    def keys(self) -> list[ExpertKey]:
        return list(self.blobs)

    @property
    def stored_bytes(self) -> int:
        """Bytes of one expert on disk."""
        return packed_bytes(self.blob_bytes) if self.packing else self.blob_bytes

    @property
    def version(self) -> int:
        return PACKED_VERSION if self.packing else VERSION

    @property
    def expert_bytes(self) -> int:
        """Bytes of all experts in slots."""
        return len(self.blobs) * self.blob_bytes

    @property
    def payload_bytes(self) -> int:
        """Bytes of all experts on disk."""
        return len(self.blobs) * self.stored_bytes

    @property
    def file_bytes(self) -> int:
        return ALIGN + len(self.header()) + self.payload_bytes + ALIGN

    def header(self) -> bytes:
        """Return the header's JSON, padded with blanks to 4096.

        Offsets and checksums are of fixed width, so that the size is known before they are.
        """
        rows = [[key.layer, key.expert, f"{b.offset:016x}", f"{b.checksum:016x}"] for key, b in self.blobs.items()]
        value = {
            "checksum": CHECKSUM_NAME,
            "source": self.source,
            "groups": self.groups,
            "quantization": self.quantization,
            **({"packing": self.packing} if self.packing else {}),
            "blob_bytes": self.blob_bytes,
            "tensors": [[t.name, list(t.shape), t.dtype, t.offset] for t in self.tensors],
            "experts": rows,
        }
        text = json.dumps(value, separators=(",", ":")).encode()
        return text.ljust(round_up(len(text), ALIGN))

    @classmethod
    def parse(cls, header: bytes) -> StoreLayout:
        """Read `header()` back; the bytes have passed their checksum, so that only a writer's mistake can raise."""
        value = json.loads(header)
        if value["checksum"] != CHECKSUM_NAME:
            raise ValueError(f"checksum: expected {CHECKSUM_NAME}, got {value['checksum']!r}")
        tensors = tuple(
            TensorSpec(name, tuple(shape), dtype, offset) for name, shape, dtype, offset in value["tensors"]
        )
        blobs = {
            ExpertKey(layer, expert): Blob(int(offset, 16), int(checksum, 16))
            for layer, expert, offset, checksum in value["experts"]
        }
        groups, quantization = tuple(value.get("groups", ())), value.get("quantization", "")
        packing = value.get("packing", "")
        if packing not in ("", PACKED):
            raise ValueError(f"packing: expected {PACKED}, got {packing!r}")
        return cls(tensors, value["blob_bytes"], blobs, value["source"], groups, quantization, packing)


class Frame(NamedTuple):
    """What preamble and footer hold."""

    header_bytes: int
    header_checksum: int
    file_bytes: int
    version: int = VERSION


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


# The same, of parts: `update` with each, then `intdigest`.
Checksum = xxhash.xxh3_64


def checksum(data: bytes | bytearray | memoryview) -> int:
    return xxhash.xxh3_64_intdigest(data)


def pack_frame(magic: bytes, frame: Frame) -> bytes:
    fields = _FIELDS.pack(magic, frame.version, ALIGN, frame.header_bytes, frame.header_checksum, frame.file_bytes)
    body = fields.ljust(ALIGN - _CHECKSUM.size, b"\0")
    return body + _CHECKSUM.pack(checksum(body))


def unpack_frame(magic: bytes, block: bytes, where: str) -> Frame:
    """Read a preamble or footer.

    Raises:
        StoreError: it is another kind of file, of another version, or damaged; the message begins with `where`.
    """
    found, version, align, *frame = _FIELDS.unpack_from(block.ljust(_FIELDS.size, b"\0"))
    if found != magic:
        raise StoreError(f"{where}: expected the magic {magic!r}, got {bytes(found)!r}")
    body = block[: ALIGN - _CHECKSUM.size]
    if len(block) != ALIGN or _CHECKSUM.unpack(block[len(body) :])[0] != checksum(body):
        raise StoreError(f"{where}: checksum does not match: it is damaged")
    if version not in (VERSION, PACKED_VERSION) or align != ALIGN:
        raise StoreError(
            f"{where}: expected version {VERSION} or {PACKED_VERSION} aligned to {ALIGN}, got version {version}, "
            f"{align}"
        )
    header_bytes, header_checksum, file_bytes = frame
    return Frame(header_bytes, header_checksum, file_bytes, version)
