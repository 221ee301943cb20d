"""The attention that trains fastest on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# In tokens: the plain one keeps the scores of all pairs.
_LONGEST = 512


@contextmanager
def quick_attention(model: Any, longest: int) -> Iterator[None]:
    """Gives a model plain attention while it trains where torch's fused one is slow.

    In bfloat16 torch's fused attention spends a third of a small model's step in its backward pass on a CPU without
    AMX; with the plain one a step takes 0.7 to 0.8 times as long (docs/specialists.md).

    Args:
        model: of transformers or PEFT.
        longest: the longest record, in tokens.
    """
    before = model.config._attn_implementation
    if before != "sdpa" or model.device.type != "cpu" or longest > _LONGEST or _has_amx():
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _has_amx() -> bool:
    found = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(found and found())
