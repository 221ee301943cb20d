// The experts' activations and their derivatives.
#pragma once

#include <cmath>

#include "elementary.h"
#include "kernels.h"

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

// OpenAI's GPT-OSS: gate · sigmoid(1.702 · gate) · (up + 1), of clamped gate and up.
constexpr float GPT_OSS_SLOPE = 1.702f;
constexpr float GPT_OSS_LIMIT = 7.0f;

template <Activation KIND, bool GATED>
MOE_INLINE Vec forward_of(Vec gate, Vec up) {
  if constexpr (KIND == Activation::gpt_oss) {
    return (up + splat(1.0f)) * gate * sigmoid_pair(gate * splat(GPT_OSS_SLOPE)).value;
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
MOE_INLINE Backward backward_of(Vec gate, Vec up, Vec grad) {
  if constexpr (KIND == Activation::gpt_oss) {
    const Vec one = splat(1.0f);
    const Sigmoid s = sigmoid_pair(gate * splat(GPT_OSS_SLOPE));
    const Vec swish = gate * s.value;
    const Vec slope = s.value * fma(gate * splat(GPT_OSS_SLOPE), s.complement, one);
    return {(up + one) * swish, grad * (up + one) * slope, grad * swish};
  } else {
    const Curve c = curve<KIND>(gate);
    if constexpr (GATED) return {c.value * up, grad * up * c.slope, grad * c.value};
    return {c.value, grad * c.slope, Vec{}};
  }
}

// How the activation takes gate and up. The comparisons let a NaN stay one.
enum class Inputs { gate_alone, gate_and_up, clamped };

template <Activation KIND, Inputs INPUTS>
MOE_INLINE Vec forward_one(Vec gate, Vec up, Vec limit) {
  if constexpr (INPUTS == Inputs::clamped) {
    gate = gate > limit ? limit : gate;
    up = up > limit ? limit : up;
    up = up < -limit ? -limit : up;
  }
  return forward_of<KIND, INPUTS != Inputs::gate_alone>(gate, up);
}

template <Activation KIND, Inputs INPUTS>
MOE_INLINE Backward backward_one(Vec gate, Vec up, Vec grad, Vec limit) {
  if constexpr (INPUTS == Inputs::clamped) {
    const Vec zero = splat(0.0f);
    const Vec low_gate = gate > limit ? limit : gate;
    Vec low_up = up > limit ? limit : up;
    low_up = low_up < -limit ? -limit : low_up;
    Backward back = backward_of<KIND, true>(low_gate, low_up, grad);
    back.gate = gate > limit ? zero : back.gate;
    back.up = up > limit ? zero : back.up;
    back.up = up < -limit ? zero : back.up;
    return back;
  } else {
    return backward_of<KIND, INPUTS != Inputs::gate_alone>(gate, up, grad);
  }
}

template <Activation KIND, Inputs INPUTS>
inline void activate_loop(float limit, float* act, const float* gate, const float* up, int64_t count) {
  constexpr bool GATED = INPUTS != Inputs::gate_alone;
  const Vec most = splat(limit);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES)
    store(act + i, forward_one<KIND, INPUTS>(load(gate + i), GATED ? load(up + i) : Vec{}, most));
  if (i < count) {
    const int64_t left = count - i;
    const Vec u = GATED ? load_first(up + i, left) : Vec{};
    store_first(act + i, forward_one<KIND, INPUTS>(load_first(gate + i, left), u, most), left);
  }
}

template <Activation KIND, Inputs INPUTS>
inline void activate_backward_loop(float limit, float* act, float* gate, float* up, const float* grad, int64_t count) {
  constexpr bool GATED = INPUTS != Inputs::gate_alone;
  const Vec most = splat(limit);
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i < LANES ? count - i : LANES;
    const Vec u = GATED ? load_first(up + i, left) : Vec{};
    const Backward back = backward_one<KIND, INPUTS>(load_first(gate + i, left), u, load_first(grad + i, left), most);
    store_first(act + i, back.act, left);
    store_first(gate + i, back.gate, left);
    if constexpr (GATED) store_first(up + i, back.up, left);
  }
}

template <Activation KIND>
inline void activate_kind(float limit, float* act, const float* gate, const float* up, int64_t count) {
  if (!up) return activate_loop<KIND, Inputs::gate_alone>(limit, act, gate, up, count);
  if (limit == INFINITY) return activate_loop<KIND, Inputs::gate_and_up>(limit, act, gate, up, count);
  activate_loop<KIND, Inputs::clamped>(limit, act, gate, up, count);
}

template <Activation KIND>
inline void activate_backward_kind(float limit, float* act, float* gate, float* up, const float* grad, int64_t count) {
  if (!up) return activate_backward_loop<KIND, Inputs::gate_alone>(limit, act, gate, up, grad, count);
  if (limit == INFINITY) return activate_backward_loop<KIND, Inputs::gate_and_up>(limit, act, gate, up, grad, count);
  activate_backward_loop<KIND, Inputs::clamped>(limit, act, gate, up, grad, count);
}

inline void activate(const LimitedActivation& activation, float* act, const float* gate, const float* up,
                     int64_t count) {
  const float limit = activation.limit;
  switch (activation.kind) {
    case Activation::silu:
      return activate_kind<Activation::silu>(limit, act, gate, up, count);
    case Activation::gelu:
      return activate_kind<Activation::gelu>(limit, act, gate, up, count);
    case Activation::gelu_tanh:
      return activate_kind<Activation::gelu_tanh>(limit, act, gate, up, count);
    case Activation::relu:
      return activate_kind<Activation::relu>(limit, act, gate, up, count);
    case Activation::relu2:
      return activate_kind<Activation::relu2>(limit, act, gate, up, count);
    case Activation::gpt_oss:
      return activate_loop<Activation::gpt_oss, Inputs::clamped>(GPT_OSS_LIMIT, act, gate, up, count);
  }
}

inline void activate_backward(const LimitedActivation& activation, float* act, float* gate, float* up,
                              const float* grad, int64_t count) {
  const float limit = activation.limit;
  switch (activation.kind) {
    case Activation::silu:
      return activate_backward_kind<Activation::silu>(limit, act, gate, up, grad, count);
    case Activation::gelu:
      return activate_backward_kind<Activation::gelu>(limit, act, gate, up, grad, count);
    case Activation::gelu_tanh:
      return activate_backward_kind<Activation::gelu_tanh>(limit, act, gate, up, grad, count);
    case Activation::relu:
      return activate_backward_kind<Activation::relu>(limit, act, gate, up, grad, count);
    case Activation::relu2:
      return activate_backward_kind<Activation::relu2>(limit, act, gate, up, grad, count);
    case Activation::gpt_oss:
      return activate_backward_loop<Activation::gpt_oss, Inputs::clamped>(GPT_OSS_LIMIT, act, gate, up, grad, count);
  }
}

}  // namespace
}  // namespace moe
