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

// OpenAI's GPT-OSS: min(gate, 7) · sigmoid(1.702 · gate) · (clamp(up, -7, 7) + 1). Else f(gate) · up.
MOE_DEVICE Gated gated(Activation kind, float gate, float up) {
  if (kind != Activation::gpt_oss) {
    const Curve c = curve(kind, gate);
    return {c.value * up, c.slope * up, c.value};
  }
  const float g = gate > 7.0f ? 7.0f : gate;
  const float high = up > 7.0f ? 7.0f : up;
  const float u = high < -7.0f ? -7.0f : high;
  const float s = sigmoid(1.702f * g);
  const float slope = s * (1.0f + 1.702f * g * (1.0f - s));
  const bool inside = up >= -7.0f && up <= 7.0f;
  return {(u + 1.0f) * g * s, gate <= 7.0f ? (u + 1.0f) * slope : 0.0f, inside ? g * s : 0.0f};
}

}  // namespace moe::cuda
