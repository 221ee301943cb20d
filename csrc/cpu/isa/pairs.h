// The product of bfloat16 pairs, for AVX512-BF16. float32 sums, denormal terms count as zero.
//
// As in floats.h, the two shapes add in the same order: within a run acc = dot_pair(a, b, acc) from zero in order of k;
// runs are added to the result in order.
#pragma once

#include "columns.h"
#include "pack_pairs.h"
#include "panel.h"

namespace moe {
namespace {

constexpr int64_t FEW_PAIR_COLUMNS = 8;

MOE_INLINE Vec dot_pair(Vec a, Vec b, Vec sum) {
  return reinterpret_cast<Vec>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                                                reinterpret_cast<__m512bh>(b)));
}

struct PairWords {
  using Operand = moe::Operand;
  static constexpr int64_t UNIT = 2, RUN = DEPTH;
  static constexpr bool SCALED = false;

  static MOE_INLINE Vec multiply_add(Vec word, Vec right, Vec sum) { return dot_pair(word, right, sum); }
  static Left left(const float* words, const Operand&, int64_t, int64_t) { return {words, nullptr, 0}; }
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

// 16 rows by 16 words at a time, transposed in registers.
template <int COLUMNS>
inline void few_pairs_by_rows(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                              int64_t ldb, bool accumulate) {
  constexpr int64_t STEP = 2 * LANES;
  for (int64_t m = 0; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    const char* row[LANES];
    for (int64_t r = 0; r < LANES; ++r) row[r] = a.base + (m + (r < count ? r : count - 1)) * a.row_stride * 2;
    const int64_t next = rows - m - LANES;
    Ahead ahead;
    if (next > 0) ahead = PairWords::ahead(a, m + LANES, next < LANES ? next : LANES, depth);
    Vec sum[COLUMNS], run[COLUMNS] = {};
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t k = 0; k < depth; k += STEP) {
      Vec block[LANES];
      const int64_t width = depth - k < STEP ? depth - k : STEP;
      if (width == STEP) {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) {
          ahead.fetch();
          block[r] = load(reinterpret_cast<const float*>(row[r] + k * 2));
        }
      } else {
        for (int r = 0; r < LANES; ++r) block[r] = load_first_pairs(row[r] + k * 2, width);
      }
      transpose(block);
      const float* right = b + k / 2 * ldb;
      if (width == STEP) {
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) {
#pragma GCC unroll 8
          for (int n = 0; n < COLUMNS; ++n) run[n] = dot_pair(block[j], splat_word(right + j * ldb + n), run[n]);
        }
      } else {
        for (int64_t j = 0; j < (width + 1) / 2; ++j)
          for (int n = 0; n < COLUMNS; ++n) run[n] = dot_pair(block[j], splat_word(right + j * ldb + n), run[n]);
      }
      if ((k + STEP) % (2 * PairWords::RUN) == 0 || k + STEP >= depth)
        end_run(sum, run, !accumulate && k < 2 * PairWords::RUN);
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

// Rows of m side by side in memory: words of two of them are made in registers.
template <int COLUMNS>
inline void few_pairs_by_columns(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                 int64_t ldb, bool accumulate) {
  const int64_t stride = a.col_stride * 2;
  for (int64_t m = 0; m < rows; m += 2 * LANES) {
    // 32 rows fill a cache line.
    const int64_t count = rows - m < 2 * LANES ? rows - m : 2 * LANES;
    const int64_t first = count < LANES ? count : LANES, second = count - first;
    Vec sum[2][COLUMNS], run[2][COLUMNS] = {};
    get_columns(sum[0], c + m * ldc, ldc, first, accumulate);
    get_columns(sum[1], c + (m + first) * ldc, ldc, second, accumulate);
    const char* at = a.base + m * 2;
    for (int64_t k = 0; k < depth; k += 2, at += 2 * stride) {
      __builtin_prefetch(at + 16 * stride);
      __builtin_prefetch(at + 17 * stride);
      const bool last = k + 1 == depth;
      Vec word[2];
      word[0] = reinterpret_cast<Vec>(load_first_bits(at, first) | (last ? VecU{} : load_first_bits(at + stride, first) << 16));
      word[1] = second == 0 ? Vec{}
                            : reinterpret_cast<Vec>(load_first_bits(at + 32, second) |
                                                    (last ? VecU{} : load_first_bits(at + stride + 32, second) << 16));
#pragma GCC unroll 8
      for (int n = 0; n < COLUMNS; ++n) {
        const Vec right = splat_word(b + k / 2 * ldb + n);
        run[0][n] = dot_pair(word[0], right, run[0][n]);
        run[1][n] = dot_pair(word[1], right, run[1][n]);
      }
      if ((k + 2) % (2 * PairWords::RUN) == 0 || k + 2 >= depth) {
        end_run(sum[0], run[0], !accumulate && k < 2 * PairWords::RUN);
        end_run(sum[1], run[1], !accumulate && k < 2 * PairWords::RUN);
      }
    }
    put_columns(c + m * ldc, ldc, sum[0], first);
    put_columns(c + (m + first) * ldc, ldc, sum[1], second);
  }
}

template <int COLUMNS>
inline void few_pairs(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b, int64_t ldb,
                      int64_t columns, bool accumulate) {
  if constexpr (COLUMNS > 1) {
    if (columns < COLUMNS) {
      few_pairs<COLUMNS - 1>(c, ldc, a, rows, depth, b, ldb, columns, accumulate);
      return;
    }
  }
  if (a.col_stride == 1)
    few_pairs_by_rows<COLUMNS>(c, ldc, a, rows, depth, b, ldb, accumulate);
  else
    few_pairs_by_columns<COLUMNS>(c, ldc, a, rows, depth, b, ldb, accumulate);
}

inline void product_pairs(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                          int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  if (columns <= FEW_PAIR_COLUMNS)
    few_pairs<FEW_PAIR_COLUMNS>(c, ldc, a, rows, depth, b, ldb, columns, accumulate);
  else if (a.col_stride == 1)
    panel_by_rows<PairWords>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
  else
    panel_by_columns<PairWords>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
}

constexpr Form PAIRS = {DType::bf16,        2,
                        TILE_ROWS,          FEW_PAIR_COLUMNS,
                        PANEL_SCRATCH,      product_pairs,
                        pack_columns_pairs, pack_rows_pairs,
                        pack_block_pairs};

}  // namespace
}  // namespace moe
