// A token's row of logits, spread over a warp: lane l has the experts l, l + 32, …, `V` of them, in registers.
// Tokens T, experts E, experts per token K. Past E, logits are -inf.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/numbers.cuh"
#include "cuda/topk_gating.h"
#include "cuda/warp.cuh"

namespace moe::cuda {

constexpr int GATING_WARPS = 8;
constexpr int GATING_THREADS = GATING_WARPS * WARP;
// Without it ptxas aims at more blocks than are of use and spills.
constexpr int blocks_per_sm(int values) { return values <= 8 ? 2 : 1; }
// DeepSeek-V3's guard against a zero sum of sigmoid scores.
constexpr float SIGMOID_EPSILON = 1e-20f;

struct LogitRows {
  const void* logits;
  const void* noise;  // or null
  int64_t logits_stride, noise_stride;
  DType logits_dtype, noise_dtype;
  int64_t tokens;
  int32_t experts;

  MOE_DEVICE float at(int64_t token, int expert) const {
    const float logit = load_float(logits, logits_dtype, token * logits_stride + expert);
    return noise ? logit + load_float(noise, noise_dtype, token * noise_stride + expert) : logit;
  }
};

template <int V>
struct AddRow {
  float (&sum)[V];
  const void* data;
  int64_t first;
  int experts, lane;

  template <typename T>
  MOE_DEVICE void run() const {
    const T* row = static_cast<const T*>(data) + first;
    // All loads before the first use.
    T raw[V];
#pragma unroll
    for (int i = 0; i < V; ++i) raw[i] = i * WARP + lane < experts ? row[i * WARP + lane] : from_float<T>(0.0f);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += to_float(raw[i]);
  }
};

template <int V>
MOE_DEVICE void load_row(float (&logit)[V], const LogitRows& rows, int64_t token, int lane) {
#pragma unroll
  for (int i = 0; i < V; ++i) logit[i] = i * WARP + lane < rows.experts ? 0.0f : -INFINITY;
  by_type(rows.logits_dtype, AddRow<V>{logit, rows.logits, token * rows.logits_stride, rows.experts, lane});
  if (rows.noise)
    by_type(rows.noise_dtype, AddRow<V>{logit, rows.noise, token * rows.noise_stride, rows.experts, lane});
}

struct RowStatistics {
  float logsumexp;
  float entropy;
  bool broken;  // a NaN, or nothing but -inf: all of p is NaN
};

// p = softmax(logit); entries of +inf share the whole mass.
template <int V>
MOE_DEVICE RowStatistics softmax(float (&p)[V], const float (&logit)[V]) {
  float top = -INFINITY;
  int infinite = 0;
  bool nan = false;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    top = fmaxf(top, logit[i]);
    infinite += logit[i] == INFINITY;
    nan = nan || logit[i] != logit[i];
  }
  nan = __any_sync(ALL_LANES, nan);
  top = warp_max(top);
  if (nan || top == -INFINITY) {
#pragma unroll
    for (int i = 0; i < V; ++i) p[i] = NAN;
    return {NAN, NAN, true};
  }
  if (top == INFINITY) {
    const float shares = static_cast<float>(__reduce_add_sync(ALL_LANES, infinite));
#pragma unroll
    for (int i = 0; i < V; ++i) p[i] = logit[i] == INFINITY ? 1.0f / shares : 0.0f;
    return {INFINITY, logf(shares), false};
  }
  float total = 0.0f, weighted = 0.0f;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float shifted = logit[i] - top;
    p[i] = expf(shifted);
    total += p[i];
    // Where p is 0, `shifted` may be -inf and the product NaN.
    weighted += p[i] > 0.0f ? p[i] * shifted : 0.0f;
  }
  total = warp_sum(total);
  weighted = warp_sum(weighted);
#pragma unroll
  for (int i = 0; i < V; ++i) p[i] = p[i] / total;
  const float log_total = logf(total);
  return {top + log_total, log_total - weighted / total, false};
}

MOE_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

inline LogitRows logit_rows(const TensorView& logits, const TensorView* noise) {
  if (logits.shape[1] > MOST_EXPERTS)
    throw std::invalid_argument("topk_gating: logits: expected at most " + std::to_string(MOST_EXPERTS) +
                                " experts, got " + std::to_string(logits.shape[1]));
  return {logits.data,  noise ? noise->data : nullptr,     logits.strides[0], noise ? noise->strides[0] : 0,
          logits.dtype, noise ? noise->dtype : DType::f32, logits.shape[0],   static_cast<int32_t>(logits.shape[1])};
}

// Calls visit.run<V>() with as many registers a lane as the experts need.
template <typename Visit>
void by_experts(int64_t experts, Visit&& visit) {
  if (experts <= 32) return visit.template run<1>();
  if (experts <= 64) return visit.template run<2>();
  if (experts <= 128) return visit.template run<4>();
  if (experts <= 256) return visit.template run<8>();
  if (experts <= 512) return visit.template run<16>();
  return visit.template run<32>();
}

}  // namespace moe::cuda
