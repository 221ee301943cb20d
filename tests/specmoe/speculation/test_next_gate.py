from __future__ import annotations

import numpy as np
import pytest
import torch

from specmoe.speculation import NextGate, Observation, RouteTrace
from specmoe.speculation.next_gate import fit_corrections

L, E, K, H, N = 3, 8, 2, 16, 600


def model(seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gates, and a change of low rank that each layer makes to the residual."""
    generator = torch.Generator().manual_seed(seed)
    gates = [torch.randn(E, H, generator=generator) for _ in range(L)]
    changes = [torch.randn(H, 3, generator=generator) @ torch.randn(3, H, generator=generator) / 2 for _ in range(L)]
    return gates, changes


def recorded(seed: int, shared: bool = False) -> RouteTrace:
    gates, changes = model()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, H, generator=generator)
    residuals, experts, outputs = [], [], []
    for layer in range(L):
        residuals.append(x)
        experts.append((x @ gates[layer].T).topk(K).indices)
        outputs.append(torch.randn(N, H, generator=generator))
        unit = x * torch.rsqrt(x.square().mean(-1, keepdim=True))
        x = x + (outputs[-1] if shared else 0.0) + unit @ changes[layer] + 0.1 * torch.randn(N, H, generator=generator)
    return RouteTrace(
        torch.stack(experts, 1).numpy(),
        np.array([0, N]),
        E,
        residuals=torch.stack(residuals, 1).numpy(),
        shared=torch.stack(outputs, 1).numpy() if shared else None,
    )


def recall(predictor: NextGate, trace: RouteTrace, with_shared: bool = True) -> float:
    hits = 0
    assert trace.residuals is not None
    for n, token in enumerate(trace.experts):
        for layer in range(L):
            chances = predictor.predict(layer)
            if layer:
                assert chances is not None
                hits += len(set(np.argsort(-chances)[:K]) & set(token[layer]))
            given = None if trace.shared is None or not with_shared else torch.from_numpy(trace.shared[n, layer])[None]
            residual = torch.from_numpy(trace.residuals[n, layer])[None]
            predictor.observe(Observation(layer, token[layer][None], residual, shared=given))
    return hits / (len(trace.experts) * (L - 1) * K)


def gate_scorers() -> dict[int, object]:
    return {layer: (lambda r, w=w: r @ w.T) for layer, w in enumerate(model()[0])}


def test_the_correction_finds_what_a_layer_adds() -> None:
    plain = NextGate(gate_scorers(), E, K)  # type: ignore[arg-type]
    corrected = NextGate(gate_scorers(), E, K, fit_corrections(recorded(1), rank=3))  # type: ignore[arg-type]
    test = recorded(2)
    before, after = recall(plain, test), recall(corrected, test)
    # At least half of what was missed is found.
    assert 1 - after < 0.5 * (1 - before)


def test_the_shared_expert_is_part_of_the_next_residual() -> None:
    test = recorded(2, shared=True)
    corrections = fit_corrections(recorded(1, shared=True), rank=3)
    told = recall(NextGate(gate_scorers(), E, K, corrections), test)  # type: ignore[arg-type]
    alone = recall(NextGate(gate_scorers(), E, K, corrections), test, with_shared=False)  # type: ignore[arg-type]
    assert told > alone + 0.05


def test_refuses() -> None:
    trace = recorded(1)
    with pytest.raises(ValueError, match="expected residual streams"):
        fit_corrections(RouteTrace(trace.experts, trace.starts, E))
    with pytest.raises(ValueError, match="rank: expected 1 to H=16, got 17"):
        fit_corrections(trace, rank=17)
