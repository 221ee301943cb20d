"""The experts' activations and their derivatives: device functions in float32, with the reference backend's formulas.

`ACTIVATION` is one of the names that `fused_experts` takes. NVIDIA's tanh is approximate unless it comes from
libdevice; written with the sigmoid it is accurate to float32 where it is used, in 1 + tanh. Constants stand on the
right of a product, from where alone the interpreter multiplies them.
"""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

GPT_OSS_ALPHA = tl.constexpr(1.702)
GPT_OSS_LIMIT = tl.constexpr(7.0)
INVERSE_SQRT_2 = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)
TWICE_SQRT_2_OVER_PI = tl.constexpr(1.5957691216057308)
GELU_CUBIC = tl.constexpr(0.044715)
THREE_GELU_CUBIC = tl.constexpr(0.134145)


@triton.jit
def sigmoid(g):
    return 1.0 / (1.0 + tl.exp(-g))


@triton.jit
def curve(g, ACTIVATION: tl.constexpr):
    """Return f(g) and f'(g); what is not used costs nothing."""
    if ACTIVATION == "silu":
        s = sigmoid(g)
        value = g * s
        slope = s * (1.0 + g * (1.0 - s))
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.math.erf(g * INVERSE_SQRT_2))
        value = g * below
        slope = below + g * tl.exp(-0.5 * g * g) * INVERSE_SQRT_2PI
    elif ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh(u)) = sigmoid(2u)
        s = sigmoid((g + g * g * g * GELU_CUBIC) * TWICE_SQRT_2_OVER_PI)
        value = g * s
        slope = s + g * s * (1.0 - s) * TWICE_SQRT_2_OVER_PI * (1.0 + g * g * THREE_GELU_CUBIC)
    elif ACTIVATION == "relu":
        # Not maximum(g, 0), which drops NaN.
        value = tl.where(g < 0, 0.0, g)
        slope = tl.where(g > 0, 1.0, 0.0)
    else:
        tl.static_assert(ACTIVATION == "relu2")
        positive = tl.where(g < 0, 0.0, g)
        value = positive * positive
        slope = 2.0 * positive
    return value, slope


@triton.jit
def clamped(gate, up, limit: tl.constexpr):
    """Return the gate, at most `limit`, and up, at most that in size. Not minimum and maximum, which drop NaN."""
    gate = tl.where(gate > limit, limit, gate)
    up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
    return gate, up


@triton.jit
def inside(gate, up, limit: tl.constexpr):
    """Return where a clamp passes the gradients of gate and up on."""
    return gate <= limit, (up >= -limit) & (up <= limit)


@triton.jit
def activate(gate, up, ACTIVATION: tl.constexpr, LIMIT: tl.constexpr, GATED: tl.constexpr):
    """Return the activation; without a gate, of `gate` alone. `LIMIT` is a number or None."""
    if ACTIVATION == "gpt_oss":
        tl.static_assert(GATED)
        gate, up = clamped(gate, up, GPT_OSS_LIMIT)
        value = (up + 1.0) * gate * sigmoid(gate * GPT_OSS_ALPHA)
    elif GATED:
        if LIMIT is not None:
            gate, up = clamped(gate, up, LIMIT)
        value = curve(gate, ACTIVATION)[0] * up
    else:
        value = curve(gate, ACTIVATION)[0]
    return value


@triton.jit
def activate_backward(gate, up, grad, ACTIVATION: tl.constexpr, LIMIT: tl.constexpr, GATED: tl.constexpr):
    """Return the gradients of gate and up, given that of the activation; without a gate, both are that of `gate`."""
    if ACTIVATION == "gpt_oss":
        tl.static_assert(GATED)
        inside_gate, inside_up = inside(gate, up, GPT_OSS_LIMIT)
        gate, up = clamped(gate, up, GPT_OSS_LIMIT)
        s = sigmoid(gate * GPT_OSS_ALPHA)
        slope = s * (1.0 + gate * GPT_OSS_ALPHA * (1.0 - s))
        grad_gate = tl.where(inside_gate, grad * (up + 1.0) * slope, 0.0)
        grad_up = tl.where(inside_up, grad * gate * s, 0.0)
    elif GATED and LIMIT is not None:
        inside_gate, inside_up = inside(gate, up, LIMIT)
        gate, up = clamped(gate, up, LIMIT)
        value, slope = curve(gate, ACTIVATION)
        grad_gate = tl.where(inside_gate, grad * up * slope, 0.0)
        grad_up = tl.where(inside_up, grad * value, 0.0)
    else:
        value, slope = curve(gate, ACTIVATION)
        if GATED:
            grad_gate = grad * up * slope
            grad_up = grad * value
        else:
            grad_gate = grad * slope
            grad_up = grad_gate
    return grad_gate, grad_up
