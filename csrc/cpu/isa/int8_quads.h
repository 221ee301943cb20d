// int8 weights times fixed-point activations, for AVX512-VNNI. All sums are exact integers, so their order is free.
//
// A column of the right operand is rounded to integers v with one factor: 8 bits (one plane), or 16 bits in a high and
// a low plane, which is closer to a bfloat16 column than bfloat16 itself. The instruction wants its activations without
// a sign, so the planes hold v + 2^7 or v + 2^15, and a row's sum of weights pays for the difference:
//
//   one plane   Σ w v = Σ w u − 128 Σ w                      u = v + 128
//   two planes  Σ w v = 256 (Σ w high − 128 Σ w) + Σ w low   256 high + low = v + 32768
//
// 127 · 255 · k stays below 2^31 for k up to 66000.
#pragma once

#include "common/scratch.h"
#include "panel.h"
#include "quantized.h"

namespace moe {
namespace {

constexpr int64_t FEW_INT8_COLUMNS = 8;
// A row is short, and few are worked on at a time: the next ones would not be there in time.
constexpr int64_t FEW_INT8_ROWS_AHEAD = 8;

// Vectors of int32 or of int8 quadruples. (The compiler keeps arrays of __m512i, which may alias anything, in memory.)
MOE_INLINE VecI dot_quad(VecI activations, VecI weights, VecI sum) {
  return reinterpret_cast<VecI>(_mm512_dpbusd_epi32(
      reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(activations), reinterpret_cast<__m512i>(weights)));
}
MOE_INLINE VecI load_quads(const void* p) { return reinterpret_cast<VecI>(_mm512_loadu_si512(p)); }
MOE_INLINE VecI load_first_quads(const void* p, int64_t bytes) {
  const __mmask64 mask = bytes >= 64 ? ~__mmask64{0} : bytes > 0 ? (__mmask64{1} << bytes) - 1 : 0;
  return reinterpret_cast<VecI>(_mm512_maskz_loadu_epi8(mask, p));
}
MOE_INLINE int32_t sum_lanes(VecI v) { return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(v)); }

// The sums of four vectors.
MOE_INLINE __m128i sum_four(VecI va, VecI vb, VecI vc, VecI vd) {
  const __m512i a = reinterpret_cast<__m512i>(va), b = reinterpret_cast<__m512i>(vb);
  const __m512i c = reinterpret_cast<__m512i>(vc), d = reinterpret_cast<__m512i>(vd);
  const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
  const __m512i all = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

template <int PLANES>
MOE_INLINE float int8_value(int32_t high, int32_t low, int32_t weights, float row_factor, float column_factor) {
  const float offset_free = static_cast<float>(high - 128 * weights);
  const float value = PLANES == 2 ? 256.0f * offset_free + static_cast<float>(low) : offset_free;
  return value * row_factor * column_factor;
}

// Four rows by 64 k at a time, lanes along k.
template <int PLANES, int COLUMNS>
inline void few_int8(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b) {
  constexpr int ROWS = COLUMNS <= 1 ? 4 : COLUMNS <= 3 ? 2 : 1;
  const int64_t plane = (depth + 63) / 64 * FEW_WORDS;
  const char* bytes = reinterpret_cast<const char*>(b);
  const float* factor = b + PLANES * plane * COLUMNS;
  const VecI ones = splat_int(0x01010101);
  for (int64_t m = 0; m < rows; m += ROWS) {
    Ahead ahead = ahead_of<QuantizedFloats<DType::i8>>(a, m + FEW_INT8_ROWS_AHEAD, rows, ROWS, depth);
    const char* row[ROWS];
    for (int r = 0; r < ROWS; ++r) row[r] = a.base + (m + r < rows ? m + r : rows - 1) * a.row_stride;
    VecI weights[ROWS] = {}, sum[PLANES][ROWS][COLUMNS] = {};
    for (int64_t k = 0; k < depth; k += 64) {
      VecI left[ROWS];
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) {
        ahead.fetch();
        left[r] = depth - k >= 64 ? load_quads(row[r] + k) : load_first_quads(row[r] + k, depth - k);
        weights[r] = dot_quad(ones, left[r], weights[r]);
      }
#pragma GCC unroll 2
      for (int p = 0; p < PLANES; ++p)
#pragma GCC unroll 8
        for (int n = 0; n < COLUMNS; ++n) {
          const VecI right = load_quads(bytes + (p * plane * COLUMNS * 4) + k * COLUMNS + n * 64);
#pragma GCC unroll 4
          for (int r = 0; r < ROWS; ++r) sum[p][r][n] = dot_quad(right, left[r], sum[p][r][n]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      if (m + r >= rows) break;
      const float row_factor = a.scale[(m + r) * a.scale_stride];
#pragma GCC unroll 8
      for (int n = 0; n < COLUMNS; n += 2) {
        const int other = n + 1 < COLUMNS ? n + 1 : n;
        alignas(16) int32_t total[2][4];
        const VecI low0 = PLANES == 2 ? sum[PLANES - 1][r][n] : VecI{};
        const VecI low1 = PLANES == 2 ? sum[PLANES - 1][r][other] : VecI{};
        _mm_store_si128(reinterpret_cast<__m128i*>(total[0]),
                        sum_four(sum[0][r][n], low0, weights[r], sum[0][r][other]));
        float* at = c + (m + r) * ldc + n;
        at[0] = int8_value<PLANES>(total[0][0], total[0][1], total[0][2], row_factor, factor[n]);
        if (other == n) continue;
        const int32_t low = PLANES == 2 ? sum_lanes(low1) : 0;
        at[1] = int8_value<PLANES>(total[0][3], low, total[0][2], row_factor, factor[other]);
      }
    }
  }
}

template <int PLANES, int COLUMNS>
inline void few_int8_columns(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                             int64_t columns) {
  if constexpr (COLUMNS > 1) {
    if (columns < COLUMNS) {
      few_int8_columns<PLANES, COLUMNS - 1>(c, ldc, a, rows, depth, b, columns);
      return;
    }
  }
  few_int8<PLANES, COLUMNS>(c, ldc, a, rows, depth, b);
}

// Many columns: lanes along n, words of 4 k of a row in every lane.
struct Int8Rows {
  const char* base;
  int64_t stride;
  int64_t words;  // of 4 values
};

template <int VECTORS>
MOE_INLINE void int8_sums(VecI (&sum)[TILE_ROWS][VECTORS], const Int8Rows& rows, const float* b, int64_t ldb,
                          Ahead& ahead) {
#pragma GCC unroll 8
  for (int m = 0; m < TILE_ROWS; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sum[m][v] = VecI{};
  for (int64_t w = 0; w < rows.words; ++w) {
    if (w % 2 == 0) ahead.fetch();
    VecI right[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) right[v] = load_quads(b + w * ldb + v * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < TILE_ROWS; ++m) {
      const VecI left =
          reinterpret_cast<VecI>(splat_word(reinterpret_cast<const float*>(rows.base + m * rows.stride) + w));
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[m][v] = dot_quad(right[v], left, sum[m][v]);
    }
  }
}

template <int PLANES, int VECTORS>
inline __attribute__((noinline)) void int8_tile(const Int8Rows& rows, const int32_t* weights, const float* row_factor,
                                                int64_t factor_stride, int64_t valid, const float* b,
                                                int64_t plane_words, int64_t ldb, const float* factor, float* c,
                                                int64_t ldc, Ahead& ahead) {
  // The low plane first: its sums wait in c.
  if constexpr (PLANES == 2) {
    VecI low[TILE_ROWS][VECTORS];
    int8_sums<VECTORS>(low, rows, b + plane_words * ldb, ldb, ahead);
#pragma GCC unroll 8
    for (int m = 0; m < TILE_ROWS; ++m)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) store(c + m * ldc + v * LANES, __builtin_convertvector(low[m][v], Vec));
  }
  VecI high[TILE_ROWS][VECTORS];
  int8_sums<VECTORS>(high, rows, b, ldb, ahead);
#pragma GCC unroll 8
  for (int m = 0; m < TILE_ROWS; ++m) {
    const Vec by_row = splat(row_factor[(m < valid ? m : valid - 1) * factor_stride]);
    const VecI offset = splat_int(128 * weights[m]);
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      float* at = c + m * ldc + v * LANES;
      Vec value = __builtin_convertvector(high[m][v] - offset, Vec);
      if (PLANES == 2) value = splat(256.0f) * value + load(at);
      store(at, value * by_row * load(factor + v * LANES));
    }
  }
}

template <int PLANES, int VECTORS = TILE_VECTORS>
inline void int8_tile_of_width(int vectors, const Int8Rows& rows, const int32_t* weights, const float* row_factor,
                               int64_t factor_stride, int64_t valid, const float* b, int64_t plane_words, int64_t ldb,
                               const float* factor, float* c, int64_t ldc, Ahead& ahead) {
  if (vectors == VECTORS)
    int8_tile<PLANES, VECTORS>(rows, weights, row_factor, factor_stride, valid, b, plane_words, ldb, factor, c, ldc,
                               ahead);
  else if constexpr (VECTORS > 1)
    int8_tile_of_width<PLANES, VECTORS - 1>(vectors, rows, weights, row_factor, factor_stride, valid, b, plane_words,
                                            ldb, factor, c, ldc, ahead);
}

template <int PLANES>
inline void many_int8(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b, int64_t ldb,
                      int64_t columns) {
  const int64_t words = (depth + 3) / 4, plane = (depth + 63) / 64 * FEW_WORDS;
  const float* factor = b + PLANES * plane * ldb;
  const VecI ones = splat_int(0x01010101);
  for (int64_t m = 0; m < rows; m += TILE_ROWS) {
    const int64_t valid = std::min<int64_t>(rows - m, TILE_ROWS);
    Ahead ahead = ahead_of<QuantizedFloats<DType::i8>>(a, m + TILE_ROWS, rows, TILE_ROWS, depth);
    Int8Rows tile{a.base + m * a.row_stride, a.row_stride, words};
    // The last rows, and rows whose length is no multiple of 4, get copies that are whole.
    if (valid < TILE_ROWS || depth % 4 != 0) {
      char* copies = static_cast<char*>(row_scratch(static_cast<size_t>(TILE_ROWS * words * 4)));
      std::memset(copies, 0, static_cast<size_t>(TILE_ROWS * words * 4));
      for (int64_t r = 0; r < valid; ++r)
        std::memcpy(copies + r * words * 4, tile.base + r * a.row_stride, static_cast<size_t>(depth));
      tile = {copies, words * 4, words};
    }
    int32_t weights[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; ++r) {
      VecI sum = {};
      for (int64_t k = 0; k < words * 4; k += 64)
        sum = dot_quad(ones, load_first_quads(tile.base + r * tile.stride + k, words * 4 - k), sum);
      weights[r] = sum_lanes(sum);
    }
    int vectors = static_cast<int>((columns + LANES - 1) / LANES);
    for (int64_t n = 0; vectors > 0;) {
      int width = vectors;
      if (width > TILE_VECTORS) width = width < 2 * TILE_VECTORS ? (width + 1) / 2 : TILE_VECTORS;
      int8_tile_of_width<PLANES>(width, tile, weights, a.scale + m * a.scale_stride, a.scale_stride, valid, b + n,
                                 plane, ldb, factor + n, c + m * ldc + n, ldc, ahead);
      n += width * LANES;
      vectors -= width;
    }
  }
}

template <int PLANES>
inline void product_int8(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                         int64_t ldb, int64_t columns, bool, float*) {
  if (columns <= FEW_INT8_COLUMNS)
    few_int8_columns<PLANES, FEW_INT8_COLUMNS>(c, ldc, a, rows, depth, b, columns);
  else
    many_int8<PLANES>(c, ldc, a, rows, depth, b, ldb, columns);
}

template <int PLANES>
constexpr float INT8_LARGEST = PLANES == 2 ? 32767.0f : 127.0f;

// 64 values of a row, of which `count` exist, as the bytes of `plane`; the upper plane without a sign, or with one.
template <int PLANES, bool SIGNED = false>
MOE_INLINE Vec int8_words(const char* src, DType dtype, int64_t count, Vec inverse, int plane) {
  constexpr int32_t OFFSET = SIGNED ? 0 : PLANES == 2 ? 32768 : 128;
  __m128i quarter[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const char* at = src + i * LANES * item_size(dtype);
    const int64_t left = std::max<int64_t>(0, std::min<int64_t>(count - i * LANES, LANES));
    const Vec x = (count >= 64 ? load_as(at, dtype) : load_first_as(at, dtype, left)) * inverse;
    const __m512i v = _mm512_add_epi32(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x)), _mm512_set1_epi32(OFFSET));
    quarter[i] = _mm512_cvtepi32_epi8(PLANES == 2 && plane == 0 ? _mm512_srli_epi32(v, 8) : v);
  }
  const __m256i low = _mm256_set_m128i(quarter[1], quarter[0]), high = _mm256_set_m128i(quarter[3], quarter[2]);
  return reinterpret_cast<Vec>(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

template <int PLANES, int64_t FEW>
inline void pack_columns_int8(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t, int64_t columns) {
  const int64_t plane = (columns + 63) / 64 * FEW_WORDS, item = item_size(rows.dtype);
  const bool few = count <= FEW;
  const int64_t width = few ? count : ldb;
  float* factor = b + PLANES * plane * width;
  for (int64_t i = 0; i < width; i += LANES) {
    Vec inverse[LANES] = {};
    const int64_t height = std::max<int64_t>(0, std::min<int64_t>(count - i, LANES));
    for (int64_t r = 0; r < std::min<int64_t>(width - i, LANES); ++r) {
      const float most = r < height ? largest(rows.at(i + r, 0), rows.dtype, columns) : 0.0f;
      factor[i + r] = most / INT8_LARGEST<PLANES>;
      inverse[r] = splat(most > 0.0f ? INT8_LARGEST<PLANES> / most : 0.0f);
    }
    for (int p = 0; p < PLANES; ++p)
      for (int64_t k = 0; k < columns; k += 64) {
        const auto words = [&](int64_t r) {
          return int8_words<PLANES>(rows.at(i + r, 0) + k * item, rows.dtype, columns - k, inverse[r], p);
        };
        const int64_t w = p * plane + k / 4;
        if (few) {
          for (int64_t r = 0; r < height; ++r) store(b + few_word(count, w, r), words(r));
          continue;
        }
        Vec block[LANES];
        for (int64_t r = 0; r < LANES; ++r) block[r] = r < height ? words(r) : Vec{};
        transpose(block);
        for (int64_t r = 0; r < LANES; ++r) store(b + (w + r) * ldb + i, block[r]);
      }
  }
}

template <int PLANES>
constexpr Form int8_form() {
  return {DType::f32,
          4,
          0,
          1,
          PLANES,
          TILE_ROWS,
          FEW_INT8_COLUMNS,
          4,
          0,
          product_int8<PLANES>,
          nullptr,
          pack_columns_int8<PLANES, FEW_INT8_COLUMNS>,
          nullptr,
          nullptr};
}
constexpr Form INT8 = int8_form<2>();
constexpr Form INT8_INT8 = int8_form<1>();

}  // namespace
}  // namespace moe
