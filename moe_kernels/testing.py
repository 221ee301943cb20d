"""Tolerances by dtype, and seeded inputs for tests of the ops.

Inputs are drawn on the CPU and moved to torch's default device, so that they are the same numbers everywhere.

Letters: T tokens, E experts, K experts per token, H hidden, I intermediate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Relative root-mean-square error against the float64 reference. For the 16-bit types three roundings in a row
# (activation, product, result) of the type's unit roundoff.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 3 * 2**-11, torch.bfloat16: 3 * 2**-8}


def relative_error(got: Tensor, want: Tensor, scale: float = 0.0) -> float:
    """Return ‖got − want‖ / ‖want‖ in float64; the absolute norm where `want` is zero; NaN matches NaN.

    `scale` replaces ‖want‖ where that is smaller: for a few sums that may cancel, the norm of their terms.
    """
    got, want = got.detach().double(), want.detach().double()
    if got.shape != want.shape:
        raise AssertionError(f"shapes differ: {tuple(got.shape)} and {tuple(want.shape)}")
    if not torch.equal(torch.isnan(got), torch.isnan(want)):
        raise AssertionError("NaN in different places")
    distance = float(torch.linalg.vector_norm(torch.nan_to_num(got) - torch.nan_to_num(want)))
    size = max(float(torch.linalg.vector_norm(torch.nan_to_num(want))), scale)
    return distance / size if size else distance


def assert_close(
    got: Tensor, want: Tensor, dtype: torch.dtype | None = None, what: str = "result", scale: float = 0.0
) -> None:
    """Require a relative RMS error (see `relative_error`) within `TOLERANCE` of `dtype` (default: `got`'s)."""
    limit = TOLERANCE[dtype or got.dtype]
    error = relative_error(got, want, scale)
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
        gate_up_bias = None if self.gate_up_bias is None else self.gate_up_bias.to(dtype)
        down_bias = None if self.down_bias is None else self.down_bias.to(dtype)
        x, gate_up, down = self.x.to(dtype), self.gate_up.to(dtype), self.down.to(dtype)
        return ExpertInputs(x, self.indices, self.weights.to(wide), gate_up, down, gate_up_bias, down_bias)


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
    indices = torch.rand(T, pool, generator=generator, device="cpu").argsort(1)[:, :K].to(torch.int32)
    if routing == "single":
        # Whoever had expert 0 elsewhere gives it to slot 0.
        first = indices[:, :1].clone()
        indices = torch.where(indices == 0, first, indices)
        indices[:, 0] = 0
    if routing == "sentinels":
        gone = torch.rand(T, K, generator=generator, device="cpu") < 0.3
        indices = torch.where(gone, E + torch.arange(K, dtype=torch.int32, device="cpu"), indices)
    return indices.to(torch.get_default_device())


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
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu") * scale
        return drawn.to(torch.get_default_device())

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


def whole_pre_activation(inputs: ExpertInputs) -> ExpertInputs:
    """Return x, gate_up and its bias as small whole numbers: the pre-activation is the same in every dtype.

    So every dtype sees the same of its elements on the other side of a clamp, whose derivative is a step.
    """
    bias = inputs.gate_up_bias
    return inputs._replace(
        x=inputs.x.round(),
        gate_up=(inputs.gate_up * inputs.x.shape[1] ** 0.5).round(),
        gate_up_bias=None if bias is None else bias.round(),
    )


def naive_experts(
    inputs: ExpertInputs,
    activation: str = "silu",
    limit: float | None = None,
    interleaved: bool = False,
    transposed: bool = False,
) -> Tensor:
    """The expert MLP as a loop over experts in torch's own operations, differentiable by autograd.

    It shares no code with any backend. In float64 it is the oracle; in another dtype, what a user would write.
    """
    x, indices, weights, gate_up, down, gate_up_bias, down_bias = inputs
    if transposed:
        gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
    gated = gate_up.shape[1] == 2 * down.shape[2]
    out = torch.zeros(x.shape, dtype=weights.dtype, device=x.device)
    for e in range(down.shape[0]):
        tokens, slots = torch.where(indices == e)
        if not len(tokens):
            continue
        pre = torch.nn.functional.linear(x[tokens], gate_up[e], None if gate_up_bias is None else gate_up_bias[e])
        if not gated:
            hidden = _naive_activation(pre, None, activation, limit)
        elif interleaved:
            hidden = _naive_activation(pre[:, 0::2], pre[:, 1::2], activation, limit)
        else:
            gate, up = pre.chunk(2, dim=1)
            hidden = _naive_activation(gate, up, activation, limit)
        y = torch.nn.functional.linear(hidden, down[e], None if down_bias is None else down_bias[e])
        out = out.index_add(0, tokens, y.to(weights.dtype) * weights[tokens, slots, None])
    return out.to(x.dtype)


def _naive_activation(gate: Tensor, up: Tensor | None, activation: str, limit: float | None) -> Tensor:
    functional = torch.nn.functional
    if activation == "gpt_oss":
        assert up is not None
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return (up + 1) * (gate * torch.sigmoid(gate * 1.702))
    if limit is not None:
        assert up is not None
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    curves: dict[str, Callable[[Tensor], Tensor]] = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
        "relu": functional.relu,
        "relu2": lambda v: functional.relu(v).square(),
    }
    return curves[activation](gate) if up is None else curves[activation](gate) * up
