// The experts' activations and their derivatives, in float32.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace moe::cuda {

// The codes are those of moe_kernels/backends/cuda/arguments.py.
enum class Activation : int32_t { silu = 0, gelu = 1, gelu_tanh = 2, relu = 3, relu2 = 4, gpt_oss = 5 };

struct Curve {
  float value;
  float slope;
};

MOE_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// f(x) and f'(x) of the activations with one argument.
MOE_DEVICE Curve curve(Activation kind, float x) {
  if (kind == Activation::silu) {
    const float s = sigmoid(x);
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
  if (kind == Activation::gelu) {
    const float cdf = 0.5f * (1.0f + erff(x * 0.70710678f));
    return {x * cdf, cdf + x * 0.39894228f * expf(-0.5f * x * x)};
  }
  if (kind == Activation::gelu_tanh) {
    // (1 + tanh u) / 2 is the sigmoid of 2u, with u = √(2/π) (x + 0.044715 x³).
    const float s = sigmoid(1.59576912f * x * (1.0f + 0.044715f * x * x));
    return {x * s, s + x * s * (1.0f - s) * 1.59576912f * (1.0f + 3.0f * 0.044715f * x * x)};
  }
  // Written so that a NaN stays one.
  const float positive = x < 0.0f ? 0.0f : x;
  if (kind == Activation::relu) return {positive, x > 0.0f ? 1.0f : 0.0f};
  return {positive * positive, 2.0f * positive};
}

struct Gated {
  float act;
  float gate_slope;  // d act / d gate
  float up_slope;    // d act / d up
};

// f(g) · u with g = min(gate, limit) and u = clamp(up, -limit, limit); OpenAI's GPT-OSS: g · sigmoid(1.702 · g) ·
// (u + 1) with a limit of 7.
MOE_DEVICE Gated gated(Activation kind, float limit, float gate, float up) {
  if (kind == Activation::gpt_oss) limit = 7.0f;
  const float g = gate > limit ? limit : gate;
  const bool above = up > limit, below = up < -limit;
  const float u = above ? limit : below ? -limit : up;
  if (kind != Activation::gpt_oss) {
    const Curve c = curve(kind, g);
    return {c.value * u, gate > limit ? 0.0f : c.slope * u, above || below ? 0.0f : c.value};
  }
  const float s = sigmoid(1.702f * g);
  const float slope = s * (1.0f + 1.702f * g * (1.0f - s));
  return {(u + 1.0f) * g * s, gate > limit ? 0.0f : (u + 1.0f) * slope, above || below ? 0.0f : g * s};
}

}  // namespace moe::cuda
