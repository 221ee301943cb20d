// Softmax and sigmoid of one row of logits.
#pragma once

#include "elementary.h"
#include "kernels.h"

namespace moe {
namespace {

constexpr float INF = __builtin_inff();

// Logits are padded to a multiple of LANES with -inf, and p has that space too.
inline RowStatistics softmax(float* p, const float* logits, int64_t padded) {
  const Vec infinity = splat(INF), one = splat(1.0f), zero = splat(0.0f);
  Vec top_lanes = -infinity, infinite_lanes = zero, nan_lanes = zero;
  for (int64_t i = 0; i < padded; i += LANES) {
    const Vec x = load(logits + i);
    top_lanes = x > top_lanes ? x : top_lanes;
    infinite_lanes += x == infinity ? one : zero;
    nan_lanes += x != x ? one : zero;
  }
  float top = -INF, lane[LANES];
  store(lane, top_lanes);
  for (int i = 0; i < LANES; ++i) top = lane[i] > top ? lane[i] : top;
  const float infinite = sum_lanes(infinite_lanes);
  if (sum_lanes(nan_lanes) > 0.0f || top == -INF) {
    const float nan = __builtin_nanf("");
    for (int64_t i = 0; i < padded; ++i) p[i] = nan;
    return {nan, nan};
  }
  if (infinite > 0.0f) {
    const Vec share = splat(1.0f / infinite);
    for (int64_t i = 0; i < padded; i += LANES) store(p + i, load(logits + i) == infinity ? share : zero);
    return {INF, __builtin_logf(infinite)};
  }
  Vec total_lanes = zero, weighted_lanes = zero;
  for (int64_t i = 0; i < padded; i += LANES) {
    const Vec shifted = load(logits + i) - splat(top);
    const Vec e = exp(shifted);
    store(p + i, e);
    total_lanes += e;
    // e is 0 from -104 on, where the product with -inf would be NaN.
    weighted_lanes = fma(e, e > zero ? shifted : zero, weighted_lanes);
  }
  const float total = sum_lanes(total_lanes), log_total = __builtin_logf(total);
  for (int64_t i = 0; i < padded; i += LANES) store(p + i, load(p + i) / splat(total));
  return {top + log_total, log_total - sum_lanes(weighted_lanes) / total};
}

inline void sigmoid(float* out, const float* x, int64_t padded) {
  for (int64_t i = 0; i < padded; i += LANES) store(out + i, sigmoid_pair(load(x + i)).value);
}

}  // namespace
}  // namespace moe
