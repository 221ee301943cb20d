"""The experts' activations and their derivatives.

Shazeer 2020 (arXiv:2002.05202) for the gated forms, So et al. 2021 (arXiv:2109.08668) for relu², OpenAI's GPT-OSS for
the clamped one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GPT_OSS_ALPHA = 1.702
GPT_OSS_LIMIT = 7.0


def _curve(g: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return f(g) and f'(g)."""
    if activation == "silu":
        s = torch.sigmoid(g)
        return g * s, s * (1 + g * (1 - s))
    if activation == "gelu":
        cdf = 0.5 * (1 + torch.erf(g / math.sqrt(2)))
        density = torch.exp(-0.5 * g * g) / math.sqrt(2 * math.pi)
        return g * cdf, cdf + g * density
    if activation == "gelu_tanh":
        slope = math.sqrt(2 / math.pi)
        t = torch.tanh(slope * (g + 0.044715 * g * g * g))
        return 0.5 * g * (1 + t), 0.5 * (1 + t) + 0.5 * g * (1 - t * t) * slope * (1 + 3 * 0.044715 * g * g)
    positive = torch.relu(g)
    if activation == "relu":
        return positive, (g > 0).to(g.dtype)
    return positive * positive, 2 * positive


def split_gate_up(pre: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Split (N, 2I) into gate (N, I) and up (N, I): halves, or every other column."""
    if interleaved:
        return pre[:, 0::2], pre[:, 1::2]
    gate, up = pre.chunk(2, dim=1)
    return gate, up


def _join_gate_up(gate: Tensor, up: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        return torch.stack((gate, up), dim=2).flatten(1)
    return torch.cat((gate, up), dim=1)


def activate(pre: Tensor, activation: str, limit: float | None, gated: bool, interleaved: bool) -> Tensor:
    """Apply the activation to the pre-activation (N, 2I), or (N, I) where there is no gate; gives (N, I).

    With a limit, gate is at most that, and up at most that in size.
    """
    if not gated:
        return _curve(pre, activation)[0]
    gate, up = split_gate_up(pre, interleaved)
    if activation == "gpt_oss":
        gate, up = gate.clamp(max=GPT_OSS_LIMIT), up.clamp(-GPT_OSS_LIMIT, GPT_OSS_LIMIT)
        return (up + 1) * gate * torch.sigmoid(GPT_OSS_ALPHA * gate)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return _curve(gate, activation)[0] * up


def activate_backward(
    pre: Tensor, grad: Tensor, activation: str, limit: float | None, gated: bool, interleaved: bool
) -> Tensor:
    """Return the gradient of the pre-activation, given that of the activation (N, I)."""
    if not gated:
        return grad * _curve(pre, activation)[1]
    gate, up = split_gate_up(pre, interleaved)
    limit = GPT_OSS_LIMIT if activation == "gpt_oss" else limit
    inside_gate = inside_up = torch.ones((), dtype=pre.dtype, device=pre.device)
    if limit is not None:
        inside_gate = (gate <= limit).to(pre.dtype)
        inside_up = ((up >= -limit) & (up <= limit)).to(pre.dtype)
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    if activation == "gpt_oss":
        s = torch.sigmoid(GPT_OSS_ALPHA * gate)
        grad_gate = grad * (up + 1) * s * (1 + GPT_OSS_ALPHA * gate * (1 - s)) * inside_gate
        return _join_gate_up(grad_gate, grad * gate * s * inside_up, interleaved)
    value, slope = _curve(gate, activation)
    return _join_gate_up(grad * up * slope * inside_gate, grad * value * inside_up, interleaved)
