"""The predictors that an engine knows by name."""

from __future__ import annotations

from pathlib import Path

from specmoe.speculation import AdaptivePredictor, NextGate, Predictor, PreviousToken

from .adapters import MoEBlock

PREDICTORS = ("adaptive", "next_gate", "previous_token")


def make_predictor(predictor: Predictor | str | Path | None, blocks: list[MoEBlock]) -> Predictor | None:
    """Return a predictor for a model's blocks.

    Args:
        predictor: "adaptive" counts and learns while the model runs; "next_gate" asks the coming layer's router;
            "previous_token" repeats; a path ending in .npz is that of a fused predictor (`specmoe predict train`) for
            this model; a Predictor, or None, is returned as it is.
        blocks: those of the model, in order.

    Raises:
        ValueError: there is none of that name, or the file is of a model of another shape.
    """
    if isinstance(predictor, str | Path) and str(predictor).endswith(".npz"):
        return fused_predictor(Path(predictor), blocks)
    if not isinstance(predictor, str | Path):
        return predictor
    E, K = blocks[0].num_experts, blocks[0].top_k
    if predictor == "previous_token":
        return PreviousToken(len(blocks), E, K)
    gate = NextGate({block.layer: block.scores for block in blocks}, E, K)
    if predictor == "next_gate":
        return gate
    if predictor == "adaptive":
        return AdaptivePredictor(len(blocks), E, K, gate)
    raise ValueError(
        f"offload: predictor: expected one of {PREDICTORS}, a .npz file, a Predictor or None, got {predictor!r}"
    )


def fused_predictor(path: Path, blocks: list[MoEBlock]) -> Predictor:
    """Load a fused predictor, and check that it fits.

    Raises:
        ValueError: it was trained on a model of another shape.
        OSError: the file cannot be read.
    """
    from specmoe.speculation.fused import FusedPredictor, FusedWeights

    weights = FusedWeights.load(path)
    found = (weights.layers, weights.experts, weights.top_k)
    wanted = (len(blocks), blocks[0].num_experts, blocks[0].top_k)
    if found != wanted:
        raise ValueError(
            f"offload: predictor: expected weights for {wanted} layers, experts and experts per token, got {path} "
            f"for {found}"
        )
    return FusedPredictor(weights)
