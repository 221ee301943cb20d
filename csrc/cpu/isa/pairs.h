// The product of bfloat16 pairs, for AVX512-BF16. float32 sums, denormal terms count as zero.
//
// As in floats.h, the shapes for many and for few columns add in the same order. A run of DEPTH words has SLOTS sums,
// of every SLOTS-th word, acc = dot_pair(a, b, acc) from zero; they are added to the result in turn. That order costs
// the first shape little, and saves the second half of its shuffles: the words of 4 rows need not come in single file.
#pragma once

#include <type_traits>

#include "columns.h"
#include "pack_pairs.h"
#include "panel.h"

namespace moe {
namespace {

constexpr int64_t FEW_PAIR_COLUMNS = 10;

MOE_INLINE Vec dot_pair(Vec a, Vec b, Vec sum) {
  return reinterpret_cast<Vec>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}

struct PairWords {
  using Operand = moe::Operand;
  static constexpr int64_t UNIT = 2, SLOTS = 4, DEPTH = 512, RUN = DEPTH;
  static constexpr bool SCALED = false;
  static constexpr int64_t SCALE_STEP = 0;

  static MOE_INLINE Vec multiply_add(Vec word, Vec right, Vec sum) { return dot_pair(word, right, sum); }
  static bool direct(const Operand& a, int64_t count) { return a.row_stride % 2 == 0 && count % 2 == 0; }
  static Left left(const Operand& a, int64_t row, int64_t k) {
    return {reinterpret_cast<const float*>(a.base + (row * a.row_stride + k) * 2), a.row_stride / 2, nullptr, 0, 0};
  }
  static Ahead ahead(const Operand& a, int64_t row, int64_t rows, int64_t depth) {
    return {a.base + row * a.row_stride * 2, rows, a.row_stride * 2, depth * 2};
  }
  static void copy_row(float* words, const Operand& a, int64_t row, int64_t k, int64_t count) {
    const char* src = a.base + (row * a.row_stride + k) * 2;
    int64_t i = 0;
    for (; i + 32 <= count; i += 32) store(words + i / 2, load(reinterpret_cast<const float*>(src + i * 2)));
    if (i < count) store(words + i / 2, load_first_pairs(src + i * 2, count - i));
  }
  static void copy_columns(float* words, const Operand& a, int64_t row, int64_t rows, int64_t k, int64_t count) {
    const char* src = a.base + (row + k * a.col_stride) * 2;
    for (int64_t i = 0; i < count; i += 2, src += a.col_stride * 4) {
      const VecU low = load_first_bits(src, rows);
      const VecU high = i + 1 < count ? load_first_bits(src + a.col_stride * 2, rows) : VecU{};
      store(words + i / 2 * LANES, reinterpret_cast<Vec>(low | high << 16));
    }
  }
};

// The 128-bit quarters of 4 vectors, exchanged: quarter j of v[i] changes place with quarter i of v[j].
MOE_INLINE void transpose_quarters(Vec (&v)[4]) {
  const auto pick = [](Vec a, Vec b, auto code) {
    return reinterpret_cast<Vec>(
        _mm512_shuffle_f32x4(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), decltype(code)::value));
  };
  using Even = std::integral_constant<int, 0x88>;
  using Odd = std::integral_constant<int, 0xdd>;
  const Vec even01 = pick(v[0], v[1], Even{}), odd01 = pick(v[0], v[1], Odd{});
  const Vec even23 = pick(v[2], v[3], Even{}), odd23 = pick(v[2], v[3], Odd{});
  v[0] = pick(even01, even23, Even{});
  v[1] = pick(odd01, odd23, Even{});
  v[2] = pick(even01, even23, Odd{});
  v[3] = pick(odd01, odd23, Odd{});
}

// Four words of a column, in every quarter.
MOE_INLINE Vec splat_four(const float* p) { return reinterpret_cast<Vec>(_mm512_broadcast_f32x4(_mm_loadu_ps(p))); }

// The first `count` of them, the others zero.
MOE_INLINE Vec splat_first_of_four(const float* p, int64_t count) {
  const __mmask8 mask = count >= 4 ? 0xf : count > 0 ? static_cast<__mmask8>((1u << count) - 1) : 0;
  return reinterpret_cast<Vec>(_mm512_broadcast_f32x4(_mm_maskz_loadu_ps(mask, p)));
}

// Adds the slots (lanes of a quarter) of 4 rows (quarters) to a column of c, in turn.
MOE_INLINE void add_slots(float* c, int64_t ldc, int64_t rows, Vec sums, bool accumulate) {
  float lane[LANES];
  store(lane, sums);
  for (int64_t r = 0; r < rows; ++r) {
    float total = lane[4 * r];
    if (accumulate) total = c[r * ldc] + total;
    for (int s = 1; s < 4; ++s) total += lane[4 * r + s];
    c[r * ldc] = total;
  }
}

// GROUPS times 4 rows by 16 words. A lane is one slot of one row.
template <int COLUMNS, int GROUPS, bool WHOLE>
MOE_INLINE void few_pairs_step(Vec (&sum)[GROUPS][COLUMNS], const char* const* row, int64_t k, int64_t width,
                               const float* b, Ahead& ahead) {
  Vec block[GROUPS][4];
#pragma GCC unroll 4
  for (int g = 0; g < GROUPS; ++g) {
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      ahead.fetch();
      const char* at = row[4 * g + r] + k * 2;
      block[g][r] = WHOLE ? load(reinterpret_cast<const float*>(at)) : load_first_pairs(at, width);
    }
    transpose_quarters(block[g]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 10
    for (int n = 0; n < COLUMNS; ++n) {
      const float* at = b + k / 2 * COLUMNS + n * FEW_WORDS + 4 * j;
      const Vec right = WHOLE ? splat_four(at) : splat_first_of_four(at, (width + 1) / 2 - 4 * j);
#pragma GCC unroll 4
      for (int g = 0; g < GROUPS; ++g) sum[g][n] = dot_pair(block[g][j], right, sum[g][n]);
    }
  }
}

template <int COLUMNS, int GROUPS>
inline void few_pairs_by_rows(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                              bool accumulate) {
  constexpr int64_t STEP = 2 * FEW_WORDS, HEIGHT = 4 * GROUPS;
  for (int64_t m = 0; m < rows; m += HEIGHT) {
    const int64_t count = rows - m < HEIGHT ? rows - m : HEIGHT;
    const char* row[HEIGHT];
    for (int64_t r = 0; r < HEIGHT; ++r) row[r] = a.base + (m + (r < count ? r : count - 1)) * a.row_stride * 2;
    Ahead ahead = ahead_of<PairWords>(a, m + HEIGHT, rows, HEIGHT, depth);
    for (int64_t begin = 0; begin < depth; begin += 2 * PairWords::RUN) {
      const int64_t end = depth - begin < 2 * PairWords::RUN ? depth : begin + 2 * PairWords::RUN;
      Vec sum[GROUPS][COLUMNS] = {};
      int64_t k = begin;
      for (; k + STEP <= end; k += STEP) few_pairs_step<COLUMNS, GROUPS, true>(sum, row, k, STEP, b, ahead);
      if (k < end) few_pairs_step<COLUMNS, GROUPS, false>(sum, row, k, end - k, b, ahead);
#pragma GCC unroll 4
      for (int g = 0; g < GROUPS; ++g) {
        if (4 * g >= count) break;
#pragma GCC unroll 10
        for (int n = 0; n < COLUMNS; ++n)
          add_slots(c + (m + 4 * g) * ldc + n, ldc, count - 4 * g < 4 ? count - 4 * g : 4, sum[g][n],
                    accumulate || begin > 0);
      }
    }
  }
}

// Rows of m side by side in memory: words of two of them are made in registers.
template <int COLUMNS>
inline void few_pairs_by_columns(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                 bool accumulate) {
  const int64_t stride = a.col_stride * 2;
  for (int64_t m = 0; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    Vec sum[COLUMNS];
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t begin = 0; begin < depth; begin += 2 * PairWords::RUN) {
      const int64_t end = depth - begin < 2 * PairWords::RUN ? depth : begin + 2 * PairWords::RUN;
      Vec run[PairWords::SLOTS][COLUMNS] = {};
      for (int64_t k = begin; k < end; k += 2 * PairWords::SLOTS) {
#pragma GCC unroll 4
        for (int s = 0; s < PairWords::SLOTS; ++s) {
          if (k + 2 * s >= end) break;
          const char* at = a.base + m * 2 + (k + 2 * s) * stride;
          __builtin_prefetch(at + 16 * stride);
          __builtin_prefetch(at + 17 * stride);
          const VecU low = load_first_bits(at, count);
          const VecU high = k + 2 * s + 1 < end ? load_first_bits(at + stride, count) : VecU{};
          const Vec word = reinterpret_cast<Vec>(low | high << 16);
#pragma GCC unroll 10
          for (int n = 0; n < COLUMNS; ++n)
            run[s][n] = dot_pair(word, splat_word(b + few_word(COLUMNS, k / 2 + s, n)), run[s][n]);
        }
      }
      for (int s = 0; s < PairWords::SLOTS && begin + 2 * s < end; ++s)
        end_run(sum, run[s], !accumulate && begin == 0 && s == 0);
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

template <int COLUMNS>
inline void few_pairs(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                      int64_t columns, bool accumulate) {
  if constexpr (COLUMNS > 1) {
    if (columns < COLUMNS) {
      few_pairs<COLUMNS - 1>(c, ldc, a, rows, depth, b, columns, accumulate);
      return;
    }
  }
  if (a.col_stride == 1)
    few_pairs_by_rows<COLUMNS, (COLUMNS <= 3 ? 1 : COLUMNS <= 8 ? 2 : 1)>(c, ldc, a, rows, depth, b, accumulate);
  else
    few_pairs_by_columns<COLUMNS>(c, ldc, a, rows, depth, b, accumulate);
}

inline void product_pairs(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                          int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  if (columns <= FEW_PAIR_COLUMNS)
    few_pairs<FEW_PAIR_COLUMNS>(c, ldc, a, rows, depth, b, columns, accumulate);
  else if (a.col_stride == 1)
    panel_by_rows<PairWords>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
  else
    panel_by_columns<PairWords>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
}

// Few words make short slots, and there is no other shape to agree with: one sum.
struct PairsOverRows : PairWords {
  static constexpr int64_t SLOTS = 1;
};

inline void product_pairs_over_rows(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth,
                                    const float* b, int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  panel_by_rows<PairsOverRows>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
}

constexpr Form PAIRS = {DType::bf16,
                        PairWords::UNIT,
                        PairWords::DEPTH,
                        1,
                        1,
                        TILE_ROWS,
                        FEW_PAIR_COLUMNS,
                        6,
                        PANEL_SCRATCH<PairWords>,
                        product_pairs,
                        product_pairs_over_rows,
                        pack_columns_pairs<FEW_PAIR_COLUMNS>,
                        pack_rows_pairs,
                        pack_block_pairs<FEW_PAIR_COLUMNS>};

}  // namespace
}  // namespace moe
