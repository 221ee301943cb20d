"""The specification in plain PyTorch: the oracle of the tests and the fallback on every device."""

from __future__ import annotations

from torch import Tensor

BATCH_INVARIANT = "never"


def supports(op: str, *tensors: Tensor) -> str | None:
    """Return None: the reference serves every op, device and floating dtype."""
    return None
