"""A model's own gates beside predictors that were trained on its routes.

Letters: T tokens, H hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from ..blended import BlendedPredictor
from ..next_gate import NextGate, Scorer, fit_corrections
from ..predictor import Predictor
from ..traces import RouteTrace
from ..traces.blocks import RoutedBlock, find_blocks
from .replay import replay

# A blend has found its weights after some hundred tokens.
WARM_TOKENS = 4000


def gates_of(model: nn.Module, trace: RouteTrace) -> dict[int, Scorer]:
    """Return for each layer a function from residuals (T, H) to scores (T, E): the norm, then the router's matrix.

    Raises:
        ValueError: the trace has no residuals or is of another model, or a router is not one matrix behind a norm.
    """
    if trace.residuals is None:
        raise ValueError("gates: trace: expected residual streams (`specmoe trace record --hidden`), got none")
    blocks = find_blocks(model)
    found = {block.layer: _scorer(block) for block in blocks}
    wanted = (trace.experts.shape[1], trace.num_experts, trace.residuals.shape[2])
    weight = blocks[0].gate_weight
    if weight is None or (len(blocks), *weight.shape) != wanted:
        raise ValueError(f"gates: model: expected (layers, experts, hidden) of the trace, {wanted}, got another model")
    return found


def _scorer(block: RoutedBlock) -> Scorer:
    norm, weight, bias = block.norm, block.gate_weight, block.gate_bias
    if norm is None or weight is None:
        raise ValueError(f"gates: {block.name}: expected a norm and a router of one matrix")

    def scores(residual: Tensor) -> Tensor:
        return F.linear(norm(residual), weight, bias)

    return scores


def gated_predictors(
    model: nn.Module, kept: RouteTrace, trained: Sequence[tuple[str, Callable[[], Predictor]]], rank: int = 32
) -> dict[str, Callable[[], Predictor]]:
    """Return functions that make: the next gate, the same corrected, and blends of it with what was trained.

    Args:
        model: whose routes `kept` is.
        kept: routes with residuals, of other prompts than are tested; corrections and blends learn from them.
        trained: predictors by name.
        rank: of the corrections, at most H.
    """
    L, E, K = kept.experts.shape[1], kept.num_experts, kept.experts.shape[2]
    gates = gates_of(model, kept)
    assert kept.residuals is not None
    corrections = fit_corrections(kept, min(rank, kept.residuals.shape[2]))
    ends = np.flatnonzero(kept.starts[1:] >= WARM_TOKENS)
    warm = kept.take(np.arange(int(ends[0]) + 1 if len(ends) else len(kept)))

    def blend(make: Callable[[], Predictor]) -> Callable[[], Predictor]:
        def made() -> Predictor:
            parts = [make(), NextGate(gates, E, K), NextGate(gates, E, K, corrections)]
            predictor = BlendedPredictor(parts, L, E, K)
            replay(predictor, warm)
            return predictor

        return made

    found: dict[str, Callable[[], Predictor]] = {
        "next gate": lambda: NextGate(gates, E, K),
        "next gate, corrected": lambda: NextGate(gates, E, K, corrections),
    }
    return found | {f"{name} + next gate": blend(make) for name, make in trained}
