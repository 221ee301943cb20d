"""Tolerances by dtype, and seeded inputs for tests of the ops.

Letters: T tokens, E experts, K experts per token, H hidden, I intermediate.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Relative root-mean-square error against the float64 reference.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}


def relative_error(got: Tensor, want: Tensor) -> float:
    """Return ‖got − want‖ / ‖want‖ in float64; the absolute norm where `want` is zero; NaN matches NaN."""
    got, want = got.detach().double(), want.detach().double()
    if got.shape != want.shape:
        raise AssertionError(f"shapes differ: {tuple(got.shape)} and {tuple(want.shape)}")
    if not torch.equal(torch.isnan(got), torch.isnan(want)):
        raise AssertionError("NaN in different places")
    distance = float(torch.linalg.vector_norm(torch.nan_to_num(got) - torch.nan_to_num(want)))
    size = float(torch.linalg.vector_norm(torch.nan_to_num(want)))
    return distance / size if size else distance


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype | None = None, what: str = "result") -> None:
    """Require a relative RMS error within `TOLERANCE` of `dtype` (default: `got`'s)."""
    limit = TOLERANCE[dtype or got.dtype]
    error = relative_error(got, want)
    if not error <= limit:
        raise AssertionError(f"{what}: relative error {error:.3g} exceeds {limit:.3g}")


class ExpertInputs(NamedTuple):
    """Arguments of `fused_experts`, in its order; biases may be None."""

    x: Tensor
    indices: Tensor
    weights: Tensor
    gate_up: Tensor
    down: Tensor
    gate_up_bias: Tensor | None
    down_bias: Tensor | None

    def to(self, dtype: torch.dtype) -> ExpertInputs:
        """Cast the floating tensors; the routing weights become float32, or float64 with float64."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        cast = {name: value.to(dtype) for name, value in self._asdict().items() if value is not None}
        cast["indices"], cast["weights"] = self.indices, self.weights.to(wide)
        return ExpertInputs(**{name: cast.get(name) for name in self._fields})


def random_indices(T: int, E: int, K: int, routing: str = "uniform", seed: int = 0) -> Tensor:
    """Draw indices (T, K) int32, distinct within a token.

    Args:
        routing: "uniform"; "skewed", where expert E-1 gets no row if E > K; "single", where slot 0 is always expert 0;
            "sentinels", where about a third of the slots have no expert.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = E - 1 if routing == "skewed" and E > K else E
    if T == 0:
        return torch.zeros(0, K, dtype=torch.int32)
    indices = torch.rand(T, pool, generator=generator).argsort(1)[:, :K].to(torch.int32)
    if routing == "single":
        # Whoever had expert 0 elsewhere gives it to slot 0.
        first = indices[:, :1].clone()
        indices = torch.where(indices == 0, first, indices)
        indices[:, 0] = 0
    if routing == "sentinels":
        gone = torch.rand(T, K, generator=generator) < 0.3
        indices = torch.where(gone, E + torch.arange(K, dtype=torch.int32), indices)
    return indices


def expert_inputs(
    T: int,
    E: int,
    K: int,
    H: int,
    I: int,
    *,
    gated: bool = True,
    bias: bool = False,
    interleaved: bool = False,
    transposed: bool = False,
    routing: str = "uniform",
    seed: int = 0,
) -> ExpertInputs:
    """Draw float64 arguments of `fused_experts` with outputs of order one."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    rows = 2 * I if gated else I
    gate_up, down = normal(E, rows, H, scale=H**-0.5), normal(E, H, I, scale=I**-0.5)
    if transposed:
        gate_up, down = gate_up.transpose(1, 2).contiguous(), down.transpose(1, 2).contiguous()
    return ExpertInputs(
        normal(T, H),
        random_indices(T, E, K, routing, seed + 1),
        torch.softmax(normal(T, K), 1),
        gate_up,
        down,
        normal(E, rows) if bias else None,
        normal(E, H) if bias else None,
    )
