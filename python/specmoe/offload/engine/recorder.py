"""Recording which experts a model uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn

from .adapters import moe_blocks


@contextmanager
def record_routes(model: nn.Module) -> Iterator[list[list[np.ndarray]]]:
    """Note the routing of every forward pass while the context lasts.

    Yields:
        A list that grows by one entry per pass; each holds, for every layer, the experts (T, K).
    """
    passes: list[list[np.ndarray]] = []

    def note(layer: int, indices: Tensor) -> None:
        if layer == 0:
            passes.append([])
        passes[-1].append(indices.numpy(force=True).copy())

    hooks = []
    for block in moe_blocks(model):

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], layer: int = block.layer) -> None:
            note(layer, inputs[1])

        hooks.append(block.moe.experts.register_forward_pre_hook(hook))
    try:
        yield passes
    finally:
        for handle in hooks:
            handle.remove()
