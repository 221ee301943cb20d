// One instruction set's vectors. Included by exactly one translation unit per instruction set, inside whose anonymous
// namespace everything lives: code compiled for one instruction set must never be shared with another by the linker.
#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined upper parts in its own intrinsics for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#if defined(MOE_ISA_AVX512) || defined(MOE_ISA_AVX2)
#include <immintrin.h>
#elif defined(MOE_ISA_NEON)
#include <arm_neon.h>
#endif

#include <cstdint>
#include <cstring>
#include <utility>

#include "common/view.h"

namespace moe {
namespace {

#if defined(MOE_ISA_AVX512)
#define MOE_LANES 16
#elif defined(MOE_ISA_AVX2)
#define MOE_LANES 8
#else
#define MOE_LANES 4
#endif

constexpr int LANES = MOE_LANES;

// A template would warn about dropped attributes, so plain typedefs.
typedef float Vec __attribute__((vector_size(MOE_LANES * 4)));
typedef int32_t VecI __attribute__((vector_size(MOE_LANES * 4)));
typedef uint32_t VecU __attribute__((vector_size(MOE_LANES * 4)));
typedef uint16_t VecH __attribute__((vector_size(MOE_LANES * 2)));
typedef float VecAny __attribute__((vector_size(MOE_LANES * 4), aligned(2), may_alias));
typedef uint16_t VecHAny __attribute__((vector_size(MOE_LANES * 2), aligned(2), may_alias));

#define MOE_INLINE inline __attribute__((always_inline))

MOE_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecAny*>(p); }
MOE_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecAny*>(p) = v; }
MOE_INLINE Vec splat(float x) { return x - Vec{}; }
MOE_INLINE VecI splat_int(int32_t x) { return x - VecI{}; }
// The 32 bits at p, whatever they mean, in every lane.
MOE_INLINE Vec splat_word(const float* p) {
  int32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return reinterpret_cast<Vec>(splat_int(bits));
}

// a · b + c, in one rounding wherever the instruction set has it: every use rounds alike, edges included.
MOE_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(MOE_ISA_AVX512)
  return reinterpret_cast<Vec>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(MOE_ISA_AVX2)
  return reinterpret_cast<Vec>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(MOE_ISA_NEON)
  return reinterpret_cast<Vec>(
      vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

MOE_INLINE Vec load_first(const float* p, int64_t count) {
#if defined(MOE_ISA_AVX512)
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p));
#else
  float padded[LANES] = {};
  std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(float));
  return load(padded);
#endif
}

MOE_INLINE void store_first(float* p, Vec v, int64_t count) {
#if defined(MOE_ISA_AVX512)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), reinterpret_cast<__m512>(v));
#else
  float padded[LANES];
  store(padded, v);
  std::memcpy(p, padded, static_cast<size_t>(count) * sizeof(float));
#endif
}

MOE_INLINE Vec widen_bf16(VecH bits) { return reinterpret_cast<Vec>(__builtin_convertvector(bits, VecU) << 16); }

// The two bfloat16 of each 32-bit lane, the first in memory being the low one.
MOE_INLINE Vec low_bf16(Vec pair) { return reinterpret_cast<Vec>(reinterpret_cast<VecU>(pair) << 16); }
MOE_INLINE Vec high_bf16(Vec pair) { return reinterpret_cast<Vec>(reinterpret_cast<VecU>(pair) & 0xffff0000u); }

// To nearest, ties to even; a NaN stays one.
MOE_INLINE VecH narrow_bf16(Vec v) {
  const VecU bits = reinterpret_cast<VecU>(v);
  const VecU rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const VecU quiet = (bits >> 16) | 0x40;
  const VecI is_nan = v != v;
  return __builtin_convertvector(is_nan ? quiet : rounded, VecH);
}

#if defined(MOE_ISA_AVX512)
MOE_INLINE Vec widen_f16(VecH bits) {
  return reinterpret_cast<Vec>(_mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(bits)));
}
MOE_INLINE VecH narrow_f16(Vec v) {
  return reinterpret_cast<VecH>(_mm512_maskz_cvtps_ph(0xffff, reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(MOE_ISA_AVX2)
MOE_INLINE Vec widen_f16(VecH bits) { return reinterpret_cast<Vec>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(bits))); }
MOE_INLINE VecH narrow_f16(Vec v) {
  return reinterpret_cast<VecH>(_mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(MOE_ISA_NEON)
MOE_INLINE Vec widen_f16(VecH bits) { return reinterpret_cast<Vec>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(bits))); }
MOE_INLINE VecH narrow_f16(Vec v) { return reinterpret_cast<VecH>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v))); }
#else
MOE_INLINE Vec widen_f16(VecH half) {
  const VecU bits = __builtin_convertvector(half, VecU);
  const VecU magnitude = (bits & 0x7fff) << 13;
  // Moving the exponent by a product instead of a sum makes subnormals come out right too.
  const Vec scaled = reinterpret_cast<Vec>(magnitude) * splat(0x1p112f);
  const VecU special = magnitude | 0x7f800000;
  const VecI is_special = magnitude >= 0x0f800000;
  return reinterpret_cast<Vec>((is_special ? special : reinterpret_cast<VecU>(scaled)) | ((bits & 0x8000) << 16));
}
MOE_INLINE VecH narrow_f16(Vec v) {
  const VecU bits = reinterpret_cast<VecU>(v);
  const VecU magnitude = bits & 0x7fffffff;
  // Normal halves: drop 13 bits, to nearest even, the carry moving into the exponent.
  const VecU normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal halves: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded by the addition.
  const VecU subnormal = reinterpret_cast<VecU>(reinterpret_cast<Vec>(magnitude) + splat(0.5f)) - 0x3f000000;
  const VecU finite = magnitude < 0x38800000 ? subnormal : normal;
  const VecU bounded = magnitude >= 0x477ff000 ? VecU{} + 0x7c00 : finite;
  const VecU result = magnitude > 0x7f800000 ? VecU{} + 0x7e00 : bounded;
  return __builtin_convertvector(result | ((bits >> 16) & 0x8000), VecH);
}
#endif

MOE_INLINE Vec load_as(const char* p, DType dtype) {
  if (dtype == DType::f32) return load(reinterpret_cast<const float*>(p));
  const VecH bits = *reinterpret_cast<const VecHAny*>(p);
  return dtype == DType::bf16 ? widen_bf16(bits) : widen_f16(bits);
}

MOE_INLINE Vec load_first_as(const char* p, DType dtype, int64_t count) {
  if (dtype == DType::f32) return load_first(reinterpret_cast<const float*>(p), count);
  uint16_t padded[LANES] = {};
  std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(uint16_t));
  return load_as(reinterpret_cast<const char*>(padded), dtype);
}

MOE_INLINE void store_as(char* p, DType dtype, Vec v) {
  if (dtype == DType::f32)
    store(reinterpret_cast<float*>(p), v);
  else
    *reinterpret_cast<VecHAny*>(p) = dtype == DType::bf16 ? narrow_bf16(v) : narrow_f16(v);
}

MOE_INLINE void store_first_as(char* p, DType dtype, Vec v, int64_t count) {
  if (dtype == DType::f32) {
    store_first(reinterpret_cast<float*>(p), v, count);
    return;
  }
  uint16_t padded[LANES];
  store_as(reinterpret_cast<char*>(padded), dtype, v);
  std::memcpy(p, padded, static_cast<size_t>(count) * sizeof(uint16_t));
}

// Sums the lanes pairwise, always in the same tree.
MOE_INLINE float sum_lanes(Vec v) {
  float lane[LANES];
  store(lane, v);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

template <int... I>
MOE_INLINE Vec pick(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, VecI{I...});
#endif
}

template <int STEP, int... I>
constexpr auto low_half(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, ((I & STEP) ? LANES + I - STEP : I)...>{};
}
template <int STEP, int... I>
constexpr auto high_half(std::integer_sequence<int, I...>) {
  return std::integer_sequence<int, ((I & STEP) ? LANES + I : I + STEP)...>{};
}

template <int STEP>
MOE_INLINE void transpose_step(Vec (&v)[LANES]) {
  using Lanes = std::make_integer_sequence<int, LANES>;
#pragma GCC unroll 16
  for (int i = 0; i < LANES; ++i) {
    if (i & STEP) continue;
    const Vec a = v[i], b = v[i + STEP];
    v[i] = pick(a, b, low_half<STEP>(Lanes{}));
    v[i + STEP] = pick(a, b, high_half<STEP>(Lanes{}));
  }
  if constexpr (STEP > 1) transpose_step<STEP / 2>(v);
}

// Lane j of v[i] changes place with lane i of v[j].
MOE_INLINE void transpose(Vec (&v)[LANES]) {
#if defined(MOE_ISA_AVX512)
  // Neighbours first, within quarters, then whole quarters: shuffles that need no index registers.
  const auto even = [](Vec a, Vec b) {
    return _mm512_unpacklo_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b));
  };
  const auto odd = [](Vec a, Vec b) {
    return _mm512_unpackhi_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b));
  };
  Vec t[16];
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d low01 = _mm512_castps_pd(even(v[i], v[i + 1])), high01 = _mm512_castps_pd(odd(v[i], v[i + 1]));
    const __m512d low23 = _mm512_castps_pd(even(v[i + 2], v[i + 3])),
                  high23 = _mm512_castps_pd(odd(v[i + 2], v[i + 3]));
    t[i] = reinterpret_cast<Vec>(_mm512_unpacklo_pd(low01, low23));
    t[i + 1] = reinterpret_cast<Vec>(_mm512_unpackhi_pd(low01, low23));
    t[i + 2] = reinterpret_cast<Vec>(_mm512_unpacklo_pd(high01, high23));
    t[i + 3] = reinterpret_cast<Vec>(_mm512_unpackhi_pd(high01, high23));
  }
  const auto quarters = [](Vec a, Vec b, auto code) {
    return reinterpret_cast<Vec>(
        _mm512_shuffle_f32x4(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), decltype(code)::value));
  };
  using Even = std::integral_constant<int, 0x88>;
  using Odd = std::integral_constant<int, 0xdd>;
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Vec a = quarters(t[j], t[4 + j], Even{}), b = quarters(t[j], t[4 + j], Odd{});
    const Vec c = quarters(t[8 + j], t[12 + j], Even{}), d = quarters(t[8 + j], t[12 + j], Odd{});
    v[j] = quarters(a, c, Even{});
    v[4 + j] = quarters(b, d, Even{});
    v[8 + j] = quarters(a, c, Odd{});
    v[12 + j] = quarters(b, d, Odd{});
  }
#else
  transpose_step<LANES / 2>(v);
#endif
}

}  // namespace
}  // namespace moe
