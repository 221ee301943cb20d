"""The native form of the predictor's inner steps, where the native core is built.

One token costs about as much as reading its weights, which are half as many bytes there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_kernels.native import native

from .weights import FusedWeights


def address(array: np.ndarray) -> int:
    """Return where an array's numbers are; it must outlive who is told."""
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])


def native_layers(weights: FusedWeights, steps: list[np.ndarray], buffers: list[np.ndarray]) -> Any | None:
    """Return the native predictor for a set of weights, or None where the native core has none.

    Args:
        weights: they are copied, in bfloat16.
        steps: (E, 2, W + later layers * 2E) for each layer.
        buffers: what csrc/cpu/route_predictor.h calls RouteState, in its order; they are used in place.
    """
    core, _ = native()
    kind = getattr(core, "RoutePredictor", None)
    if kind is None:
        return None
    w, s = weights, weights.settings
    L, E = w.layers, w.experts
    made = kind(L, E, s.width, s.hidden, s.window, s.fade, s.sharpness, [address(b) for b in buffers])
    for layer in range(L):
        parts = [w.enter_votes, w.up, w.up_bias, w.down, w.out, w.plain_votes]
        matrices = [np.ascontiguousarray(part[layer], dtype=np.float32) for part in parts]
        matrices.append(np.ascontiguousarray(steps[layer], dtype=np.float32))
        made.load(layer, [address(m) for m in matrices])
    return made
