"""Bfloat16 in 12 bits, without loss: the weights of a matrix have few exponents.

Of a value, the sign and the 7 bits behind the point are kept in a byte. Its exponent is kept in half a byte: the
distance from the lowest of the fifteen neighbouring exponents that most values have. What lies outside of these is
listed whole. DFloat11 (Zhang et al. 2025, arXiv:2504.11651) keeps exponents in a Huffman code instead, which is a bit
shorter and slower to read.

    [lowest exponent: u32][number n of listed values: u32]
    [positions: u32, room for V / 256, n used][values: u16, the same]
    [unused bytes, so that the end is a page's]
    [blocks of 64 values: 64 bytes of sign and fraction, 32 bytes of exponents: of value i below, of value i + 32 above]

V is the number of values. All is read into the end of where the values shall be, and unpacked from there to the front:
no other memory is needed. What lies between an expert's tensors is not kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from moe_kernels.native import native, view

NAME = "bf16-12"
BLOCK = 64
# Of the fifteen exponents none is the sixteenth code: it stands for a listed value.
WINDOW = 15
# One value in so many may be listed.
LISTED = 256
# Values that are packed at a time, a whole number of blocks.
PIECE = 1 << 18
_HEADER = 8
_PAGE = 4096


def packed_bytes(nbytes: int) -> int:
    """Returns how many bytes, whole pages, an expert of `nbytes` (whole pages as well) takes."""
    values = nbytes // 2
    return -(-(_HEADER + values // LISTED * 6 + values // BLOCK * 96) // _PAGE) * _PAGE


def pack(blob: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the packed bytes of an expert's.

    Args:
        blob: (bytes,) uint8, bfloat16 values in whole pages.
        spans: first and behind the last byte of each tensor.

    Raises:
        ValueError: too many values lie outside of any fifteen exponents.
    """
    values = blob.view("<u2")
    kept = np.zeros(len(values), dtype=bool)
    for begin, end in spans:
        kept[begin // 2 : end // 2] = True
    # In pieces: an expert may have hundreds of megabytes, and whoever packs it has little memory.
    pieces = [slice(begin, begin + PIECE) for begin in range(0, len(values), PIECE)]
    counts = sum(np.bincount(_exponents(values[piece])[kept[piece]], minlength=256) for piece in pieces)
    sums = np.concatenate(([0], np.cumsum(counts)))
    lowest = int((sums[WINDOW:] - sums[:-WINDOW]).argmax())
    room, outside = len(values) // LISTED, int(sums[-1] - (sums[lowest + WINDOW] - sums[lowest]))
    if outside > room:
        raise ValueError(f"expected at most {room} of {len(values)} values outside of fifteen exponents, got {outside}")
    out = np.zeros(packed_bytes(len(blob)), dtype=np.uint8)
    blocks = out[len(out) - len(values) // BLOCK * 96 :].reshape(-1, 96)
    listed = []
    for piece in pieces:
        part = values[piece]
        codes = _exponents(part) - np.uint8(lowest)
        codes[~kept[piece]] = 0
        listed.append(piece.start + np.flatnonzero(codes >= WINDOW))
        codes = np.minimum(codes, WINDOW).reshape(-1, BLOCK)
        here = blocks[piece.start // BLOCK : piece.start // BLOCK + len(codes)]
        here[:, :BLOCK] = ((part >> 8) & 0x80 | part & 0x7F).astype(np.uint8).reshape(-1, BLOCK)
        here[:, BLOCK:] = codes[:, : BLOCK // 2] | codes[:, BLOCK // 2 :] << 4
    places = np.concatenate(listed)
    out[:_HEADER].view("<u4")[:] = lowest, len(places)
    out[_HEADER : _HEADER + 4 * len(places)].view("<u4")[:] = places
    begin = _HEADER + 4 * room
    out[begin : begin + 2 * len(places)].view("<u2")[:] = values[places]
    return out


def _exponents(values: np.ndarray) -> np.ndarray:
    return ((values >> 7) & 0xFF).astype(np.uint8)


def unpack(target: memoryview, stored: memoryview) -> None:
    """Fills `target` with the values that are packed in `stored`, which may be its end.

    Raises:
        ValueError: the bytes are no packed ones.
    """
    module, _ = native()
    call: Any = getattr(module, "unpack_bf16", None)
    if call is None:
        target[:] = unpacked(np.frombuffer(stored, dtype=np.uint8).copy(), len(target)).tobytes()
        return
    out, given = torch.frombuffer(target, dtype=torch.uint8), torch.frombuffer(stored, dtype=torch.uint8)
    try:
        call(view(given), view(out))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def unpacked(stored: np.ndarray, nbytes: int) -> np.ndarray:
    """Returns (nbytes,) uint8: what `unpack` computes, in NumPy.

    Args:
        stored: (bytes,) uint8 as `pack` returns them.
        nbytes: of the values.

    Raises:
        ValueError: the bytes are no packed ones.
    """
    count = nbytes // 2
    room = count // LISTED
    lowest, listed = (int(n) for n in stored[:_HEADER].view("<u4"))
    positions = stored[_HEADER : _HEADER + 4 * min(listed, room)].view("<u4")
    if lowest > 255 or listed > room or (positions >= count).any():
        raise ValueError(f"expected packed bfloat16 values, got {listed} listed ones and the exponent {lowest}")
    blocks = stored[len(stored) - count // BLOCK * 96 :].reshape(-1, 96)
    fractions, halves = blocks[:, :BLOCK].astype(np.uint16), blocks[:, BLOCK:]
    codes = np.concatenate((halves & 15, halves >> 4), axis=1).astype(np.uint16)
    values = (fractions & 0x80) << 8 | fractions & 0x7F
    values = (values | (codes + np.uint16(lowest)) << 7).reshape(-1)
    begin = _HEADER + 4 * room
    values[positions] = stored[begin : begin + 2 * listed].view("<u2")
    return values.view(np.uint8)
