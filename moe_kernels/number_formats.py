"""NF4 and int8: how the values of one expert's matrix become bytes, and back.

NF4 is QLoRA's format (Dettmers et al. 2023, arXiv:2305.14314) with the bytes of bitsandbytes 0.50: sixteen levels, one
float32 scale for each block of 64 values, two values a byte with the first in the high nibble. The scales may
themselves be 8-bit codes of the dynamic map (Dettmers et al. 2022, arXiv:2110.02861) in blocks of 256.

Letters: O rows of a matrix, H values a row, B blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = ("nf4", "int8")
NF4_BLOCK = 64
NESTED_BLOCK = 256
# Quantiles of the normal distribution, with an exact zero.
NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def _levels(device: torch.device) -> Tensor:
    return torch.tensor(NF4_LEVELS, dtype=torch.float32, device=device)


_pairs_on: dict[torch.device, Tensor] = {}


def _level_pairs(codes: Tensor) -> Tensor:
    """The two values of each byte (256, 2), on the device of `codes`.

    Kept for each device: a host's list cannot be copied to a GPU while a CUDA graph is being captured.
    """
    if type(codes) is not Tensor:
        # A fake tensor (of tracing, say) must neither be kept nor meet a real one.
        return _make_pairs(codes.device)
    if codes.device not in _pairs_on:
        with torch.inference_mode(False):
            _pairs_on[codes.device] = _make_pairs(codes.device)
    return _pairs_on[codes.device]


def _make_pairs(device: torch.device) -> Tensor:
    levels = _levels(device)
    return torch.stack((levels.repeat_interleave(16), levels.repeat(16)), 1)


def _midpoints(levels: Tensor) -> Tensor:
    return (levels[:-1] + levels[1:]) / 2


def nf4_encode(w_OH: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (O, H/2) uint8 and the blocks' largest magnitudes (O·H/64) float32."""
    O, H = w_OH.shape
    w_BV = w_OH.to(torch.float32).contiguous().view(-1, NF4_BLOCK)
    absmax_B = w_BV.abs().amax(1)
    # The reciprocal, and not a division, is what gives bitsandbytes' bits.
    unit_BV = (w_BV * (1.0 / absmax_B.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    code_P2 = torch.bucketize(unit_BV, _midpoints(_levels(w_OH.device))).to(torch.uint8).view(-1, 2)
    return ((code_P2[:, 0] << 4) | code_P2[:, 1]).view(O, H // 2), absmax_B


def nf4_decode(codes: Tensor, absmax_B: Tensor) -> Tensor:
    """Return the float32 values (O, H) of codes (O, H/2) under their blocks' scales."""
    values = _level_pairs(codes)[codes.to(torch.int32)].view(-1, NF4_BLOCK) * absmax_B[:, None]
    return values.view(codes.shape[0], 2 * codes.shape[1])


def dynamic_map(device: torch.device | None = None) -> Tensor:
    """Return the 256 float32 levels of the 8-bit dynamic type: seven decades, each with twice the levels of the one
    below it, both signs, 0 and 1."""
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        positive = (10 ** (decade - 6) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        levels += positive + [-level for level in positive]
    return torch.tensor(sorted(levels), dtype=torch.float32, device=device)


def nested_encode(absmax_B: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantize the scales: codes (B) uint8, their blocks' scales (⌈B/256⌉), the levels (256) and the mean ()."""
    B = absmax_B.numel()
    offset = absmax_B.mean()
    code = dynamic_map(absmax_B.device)
    centered = torch.nn.functional.pad(absmax_B - offset, (0, -B % NESTED_BLOCK)).view(-1, NESTED_BLOCK)
    nested_absmax = centered.abs().amax(1)
    unit = torch.nan_to_num(centered * (1.0 / nested_absmax)[:, None]).clamp(-1, 1)
    # bitsandbytes' CPU kernel looks a value up in a table of 65536 cells: the level nearest to the cell's center is
    # taken. Equal bytes need the same rounding to a cell. For Gaussian weights it moves 0.2 % of the codes, and the
    # scales' error from 2.01080e-3 to 2.01081e-3.
    cell = ((unit + 1) * 32767.5 + 0.5).to(torch.int32)
    codes = torch.bucketize(cell.to(torch.float32) / 65535 * 2 - 1, _midpoints(code)).to(torch.uint8)
    codes = torch.where(nested_absmax[:, None] == 0, 0, codes)
    return codes.view(-1)[:B].contiguous(), nested_absmax, code, offset


def nested_decode(codes: Tensor, nested_absmax: Tensor, nested_code: Tensor, offset: Tensor, first: int = 0) -> Tensor:
    """Return the float32 scales of codes (B) that begin with the block `first` of the whole."""
    block = torch.arange(first, first + codes.numel(), device=codes.device) // NESTED_BLOCK
    return nested_code[codes.to(torch.int32)] * nested_absmax[block] + offset


def int8_encode(w_OH: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (O, H) int8 and scale (O) float32: each row's largest magnitude over 127; 0 for a row of zeros."""
    wide_OH = w_OH.to(torch.float32)
    scale_O = wide_OH.abs().amax(1) / 127
    return int8_round(wide_OH, scale_O).to(torch.int8), scale_O


def int8_round(x_NH: Tensor, scale_N: Tensor) -> Tensor:
    """Divide each row by its scale and round to the nearest integer within ±127, ties to even; in x's dtype."""
    divisor = torch.where(scale_N == 0, 1, scale_N)
    return (x_NH / divisor[:, None]).round().clamp(-127, 127)


def int8_decode(values_OH: Tensor, scale_O: Tensor) -> Tensor:
    """Return the float32 values (O, H)."""
    return values_OH.to(torch.float32) * scale_O[:, None]


def decode_expert(format: str, data: Tensor, scales: list[Tensor], e: int) -> Tensor:
    """Return one expert's matrix (O, H) in float32.

    Args:
        format: "nf4" or "int8".
        data: codes (E, O, H/2) or values (E, O, H).
        scales: [absmax] or [absmax codes, nested_absmax, nested_code, offset]; or [scale].
        e: the expert.
    """
    if format == "int8":
        return int8_decode(data[e], scales[0][e])
    B = 2 * data[e].numel() // NF4_BLOCK
    absmax_B = scales[0][e * B : (e + 1) * B]
    if len(scales) > 1:
        absmax_B = nested_decode(absmax_B, scales[1], scales[2], scales[3], e * B)
    return nf4_decode(data[e], absmax_B)
