// One token's normalizations, rotation and attention to a cache, a row at a time. Row lengths are multiples of 16.
#pragma once

#include "softmax.h"

namespace moe {
namespace {

template <DType KIND>
MOE_INLINE Vec load_kind(const char* p, int64_t i) {
  return load_as(p + i * (KIND == DType::f32 ? 4 : 2), KIND);
}

template <DType KIND>
MOE_INLINE void store_kind(char* p, int64_t i, Vec v) {
  store_as(p + i * (KIND == DType::f32 ? 4 : 2), KIND, v);
}

// What is left of a value that is stored.
template <DType KIND>
MOE_INLINE Vec rounded(Vec v) {
  if constexpr (KIND == DType::bf16) return widen_bf16(narrow_bf16(v));
  if constexpr (KIND == DType::f16) return widen_f16(narrow_f16(v));
  return v;
}

template <DType KIND>
void rms_norm_as(char* out, const char* x, const char* base, const float* weight, float eps, bool rounds_first,
                 int64_t count) {
  Vec squares = Vec{};
  for (int64_t i = 0; i < count; i += LANES) {
    const Vec v = load_kind<KIND>(x, i);
    squares = fma(v, v, squares);
  }
  const Vec factor = splat(1.0f / __builtin_sqrtf(sum_lanes(squares) / static_cast<float>(count) + eps));
  for (int64_t i = 0; i < count; i += LANES) {
    Vec v = load_kind<KIND>(x, i) * factor;
    if (rounds_first) v = rounded<KIND>(v);
    v = v * load(weight + i);
    if (base) v = load_kind<KIND>(base, i) + rounded<KIND>(v);
    store_kind<KIND>(out, i, v);
  }
}

inline void rms_norm(char* out, const char* x, const char* base, DType dtype, const float* weight, float eps,
                     bool rounds_first, int64_t count) {
  const auto kind = dtype == DType::f32    ? rms_norm_as<DType::f32>
                    : dtype == DType::bf16 ? rms_norm_as<DType::bf16>
                                           : rms_norm_as<DType::f16>;
  kind(out, x, base, weight, eps, rounds_first, count);
}

template <DType KIND>
void turn_as(char* x, const float* cos, const float* sin, int64_t count) {
  const int64_t half = count / 2;
  for (int64_t i = 0; i < half; i += LANES) {
    const Vec a = load_kind<KIND>(x, i), b = load_kind<KIND>(x, half + i);
    store_kind<KIND>(x, i, rounded<KIND>(a * load(cos + i)) + rounded<KIND>(b * load(sin + i)));
    store_kind<KIND>(x, half + i, rounded<KIND>(b * load(cos + half + i)) + rounded<KIND>(a * load(sin + half + i)));
  }
}

inline void turn(char* x, DType dtype, const float* cos, const float* sin, int64_t count) {
  const auto kind = dtype == DType::f32    ? turn_as<DType::f32>
                    : dtype == DType::bf16 ? turn_as<DType::bf16>
                                           : turn_as<DType::f16>;
  kind(x, cos, sin, count);
}

template <DType KIND>
void attend_as(char* out, const char* queries, int64_t heads, int64_t size, const char* keys, const char* values,
               int64_t count, float scale, float* scores) {
  const int64_t padded = (count + LANES - 1) / LANES * LANES, row = size * item_size(KIND);
  for (int64_t at = 0; at < padded; at += LANES) {
    const int64_t live = count - at < LANES ? count - at : LANES;
    const char* key[LANES];
    for (int64_t j = 0; j < LANES; ++j) key[j] = keys + (at + (j < live ? j : live - 1)) * row;
    for (int64_t h = 0; h < heads; ++h) {
      Vec sum[LANES] = {};
      for (int64_t d = 0; d < size; d += LANES) {
        const Vec query = load_kind<KIND>(queries, h * size + d);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) sum[j] = fma(query, load_kind<KIND>(key[j], d), sum[j]);
      }
      // Lane i of sum[j] becomes lane j of sum[i]: one vector of all columns' scores is the sum of all.
      transpose(sum);
      Vec total = sum[0];
#pragma GCC unroll 16
      for (int j = 1; j < LANES; ++j) total += sum[j];
      float* to = scores + h * padded + at;
      store(to, total * splat(scale));
      for (int64_t j = live; j < LANES; ++j) to[j] = -INF;
    }
  }
  for (int64_t h = 0; h < heads; ++h) {
    float* share = scores + h * padded;
    softmax(share, share, padded);
    for (int64_t d = 0; d < size; d += LANES) {
      // Two sums, so that one multiply-add need not wait for the one before it.
      Vec even = Vec{}, odd = Vec{};
      int64_t c = 0;
      for (; c + 2 <= count; c += 2) {
        even = fma(splat(share[c]), load_kind<KIND>(values + c * row, d), even);
        odd = fma(splat(share[c + 1]), load_kind<KIND>(values + (c + 1) * row, d), odd);
      }
      if (c < count) even = fma(splat(share[c]), load_kind<KIND>(values + c * row, d), even);
      store_kind<KIND>(out + h * row, d, even + odd);
    }
  }
}

inline void attend(char* out, const char* queries, DType dtype, int64_t heads, int64_t size, const char* keys,
                   const char* values, int64_t count, float scale, float* scores) {
  const auto kind = dtype == DType::f32    ? attend_as<DType::f32>
                    : dtype == DType::bf16 ? attend_as<DType::bf16>
                                           : attend_as<DType::f16>;
  kind(out, queries, heads, size, keys, values, count, scale, scores);
}

}  // namespace
}  // namespace moe
