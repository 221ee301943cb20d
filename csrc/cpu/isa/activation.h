// The experts' activations and their derivatives.
#pragma once

#include "kernels.h"
#include "elementary.h"

namespace moe {
namespace {

struct Curve {
  Vec value;
  Vec slope;
};

// f(x) and f'(x) of the activations with one argument.
template <Activation KIND>
MOE_INLINE Curve curve(Vec x) {
  const Vec one = splat(1.0f), zero = splat(0.0f);
  if constexpr (KIND == Activation::silu) {
    const Sigmoid s = sigmoid_pair(x);
    return {x * s.value, s.value * fma(x, s.complement, one)};
  } else if constexpr (KIND == Activation::gelu) {
    const Normal n = normal(x);
    return {x * n.cdf, fma(x, n.density, n.cdf)};
  } else if constexpr (KIND == Activation::gelu_tanh) {
    // (1 + tanh u) / 2 is the sigmoid of 2u, with u = √(2/π) (x + 0.044715 x³).
    const Vec inner = x * fma(x * x, splat(2.0f * 0.79788456f * 0.044715f), splat(2.0f * 0.79788456f));
    const Vec inner_slope = fma(x * x, splat(2.0f * 0.79788456f * 3.0f * 0.044715f), splat(2.0f * 0.79788456f));
    const Sigmoid s = sigmoid_pair(inner);
    return {x * s.value, s.value * fma(x * s.complement, inner_slope, one)};
  } else if constexpr (KIND == Activation::relu) {
    // Written so that a NaN stays one.
    return {x < zero ? zero : x, x <= zero ? zero : one};
  } else {
    const Vec positive = x < zero ? zero : x;
    return {positive * positive, positive + positive};
  }
}

// OpenAI's GPT-OSS: min(gate, 7) · sigmoid(1.702 · gate) · (clamp(up, -7, 7) + 1).
constexpr float GPT_OSS_SLOPE = 1.702f;
constexpr float GPT_OSS_LIMIT = 7.0f;

template <Activation KIND, bool GATED>
MOE_INLINE Vec forward_one(Vec gate, Vec up) {
  if constexpr (KIND == Activation::gpt_oss) {
    const Vec limit = splat(GPT_OSS_LIMIT);
    const Vec g = gate > limit ? limit : gate;
    Vec u = up > limit ? limit : up;
    u = u < -limit ? -limit : u;
    return (u + splat(1.0f)) * g * sigmoid_pair(g * splat(GPT_OSS_SLOPE)).value;
  } else {
    const Vec value = curve<KIND>(gate).value;
    return GATED ? value * up : value;
  }
}

struct Backward {
  Vec act;
  Vec gate;
  Vec up;
};

template <Activation KIND, bool GATED>
MOE_INLINE Backward backward_one(Vec gate, Vec up, Vec grad) {
  if constexpr (KIND == Activation::gpt_oss) {
    const Vec limit = splat(GPT_OSS_LIMIT), one = splat(1.0f), zero = splat(0.0f);
    const Vec g = gate > limit ? limit : gate;
    Vec u = up > limit ? limit : up;
    u = u < -limit ? -limit : u;
    const Sigmoid s = sigmoid_pair(g * splat(GPT_OSS_SLOPE));
    const Vec swish = g * s.value;
    const Vec slope = s.value * fma(g * splat(GPT_OSS_SLOPE), s.complement, one);
    const Vec gate_grad = gate > limit ? zero : grad * (u + one) * slope;
    const Vec above = up > limit ? zero : grad * swish;
    return {(u + one) * swish, gate_grad, up < -limit ? zero : above};
  } else {
    const Curve c = curve<KIND>(gate);
    if constexpr (GATED) return {c.value * up, grad * up * c.slope, grad * c.value};
    return {c.value, grad * c.slope, Vec{}};
  }
}

template <Activation KIND, bool GATED>
inline void activate_loop(float* act, const float* gate, const float* up, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    store(act + i, forward_one<KIND, GATED>(load(gate + i), GATED ? load(up + i) : Vec{}));
  if (i < count) {
    const int64_t left = count - i;
    const Vec u = GATED ? load_first(up + i, left) : Vec{};
    store_first(act + i, forward_one<KIND, GATED>(load_first(gate + i, left), u), left);
  }
}

template <Activation KIND, bool GATED>
inline void activate_backward_loop(float* act, float* gate, float* up, const float* grad, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i < LANES ? count - i : LANES;
    const Vec u = GATED ? load_first(up + i, left) : Vec{};
    const Backward back = backward_one<KIND, GATED>(load_first(gate + i, left), u, load_first(grad + i, left));
    store_first(act + i, back.act, left);
    store_first(gate + i, back.gate, left);
    if constexpr (GATED) store_first(up + i, back.up, left);
  }
}

template <Activation KIND>
inline void activate_kind(float* act, const float* gate, const float* up, int64_t count) {
  up ? activate_loop<KIND, true>(act, gate, up, count) : activate_loop<KIND, false>(act, gate, up, count);
}

template <Activation KIND>
inline void activate_backward_kind(float* act, float* gate, float* up, const float* grad, int64_t count) {
  up ? activate_backward_loop<KIND, true>(act, gate, up, grad, count)
     : activate_backward_loop<KIND, false>(act, gate, up, grad, count);
}

inline void activate(Activation activation, float* act, const float* gate, const float* up, int64_t count) {
  switch (activation) {
    case Activation::silu:
      return activate_kind<Activation::silu>(act, gate, up, count);
    case Activation::gelu:
      return activate_kind<Activation::gelu>(act, gate, up, count);
    case Activation::gelu_tanh:
      return activate_kind<Activation::gelu_tanh>(act, gate, up, count);
    case Activation::relu:
      return activate_kind<Activation::relu>(act, gate, up, count);
    case Activation::relu2:
      return activate_kind<Activation::relu2>(act, gate, up, count);
    case Activation::gpt_oss:
      return activate_loop<Activation::gpt_oss, true>(act, gate, up, count);
  }
}

inline void activate_backward(Activation activation, float* act, float* gate, float* up, const float* grad,
                              int64_t count) {
  switch (activation) {
    case Activation::silu:
      return activate_backward_kind<Activation::silu>(act, gate, up, grad, count);
    case Activation::gelu:
      return activate_backward_kind<Activation::gelu>(act, gate, up, grad, count);
    case Activation::gelu_tanh:
      return activate_backward_kind<Activation::gelu_tanh>(act, gate, up, grad, count);
    case Activation::relu:
      return activate_backward_kind<Activation::relu>(act, gate, up, grad, count);
    case Activation::relu2:
      return activate_backward_kind<Activation::relu2>(act, gate, up, grad, count);
    case Activation::gpt_oss:
      return activate_backward_loop<Activation::gpt_oss, true>(act, gate, up, grad, count);
  }
}

}  // namespace
}  // namespace moe
