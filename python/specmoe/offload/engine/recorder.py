"""Recording which experts a model uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor, nn

from .adapters import MoEBlock, moe_blocks
from .runners import chosen_experts


@contextmanager
def record_routes(model: nn.Module) -> Iterator[list[list[np.ndarray]]]:
    """Note the routing of every forward pass while the context lasts.

    Yields:
        A list that grows by one entry per pass; each holds, for every layer, the experts (T, K).
    """
    passes: list[list[np.ndarray]] = []
    last = [-1]

    def note(block: MoEBlock, indices: Tensor) -> None:
        # A decoder runs again and again after its encoder: a pass ends where a layer comes again.
        if not passes or block.layer <= last[0]:
            passes.append([])
        last[0] = block.layer
        passes[-1].append(chosen_experts(block.kind, indices, block.num_experts).copy())

    hooks = []
    for block in moe_blocks(model):

        def hook(_: nn.Module, inputs: tuple[Tensor, ...], block: MoEBlock = block) -> None:
            note(block, inputs[1])

        hooks.append(block.moe.experts.register_forward_pre_hook(hook))
    try:
        yield passes
    finally:
        for handle in hooks:
            handle.remove()
