"""The look-up of NF4's levels by byte permutation, run here instruction by instruction."""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from moe_kernels.backends.triton.number_formats import look_up_asm  # noqa: E402
from moe_kernels.number_formats import NF4_LEVELS  # noqa: E402


def _permute(a: int, b: int, selector: int) -> int:
    """PTX's `prmt.b32` in its generic mode; a selector with its sign bit set would replicate a sign."""
    source = (b << 32 | a).to_bytes(8, "little")
    picked = [selector >> 4 * i & 0xF for i in range(4)]
    assert max(picked) < 8
    return int.from_bytes(bytes(source[p] for p in picked), "little")


def _run(asm: str, given: int) -> list[int]:
    """Run the PTX that the look-up is made of, with `given` in $4."""
    registers = {"$4": given}

    def value(operand: str) -> int:
        return registers[operand] if operand in registers else int(operand, 0)

    operations = {
        "mov.b32": lambda a: a,
        "and.b32": lambda a, b: a & b,
        "or.b32": lambda a, b: a | b,
        "shr.u32": lambda a, b: a >> b,
        # Of a selector, the upper half is ignored.
        "prmt.b32": lambda a, b, c: _permute(a, b, c & 0xFFFF),
    }
    body = asm.strip().removeprefix("{").removesuffix("}")
    for line in filter(None, (part.strip() for part in body.split(";"))):
        if line.startswith(".reg"):
            continue
        name, _, operands = line.partition(" ")
        target, *sources = (operand.strip() for operand in operands.split(","))
        registers[target] = operations[name](*map(value, sources))
    return [registers[f"${i}"] for i in range(4)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_byte_in_every_place(dtype):
    asm = look_up_asm(dtype)
    bits = [b & 0xFFFF for b in torch.tensor(NF4_LEVELS).to(dtype).view(torch.int16).tolist()]
    others = random.Random(0)
    for byte in range(256):
        for place in range(4):
            given = [others.randrange(256) for _ in range(4)]
            given[place] = byte
            high = [bits[value >> 4] for value in given]
            low = [bits[value & 15] for value in given]
            want = [pair[i] | pair[i + 1] << 16 for pair in (high, low) for i in (0, 2)]
            assert _run(asm, int.from_bytes(bytes(given), "little")) == want
