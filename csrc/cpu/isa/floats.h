// The product in float32 registers, for any type of weight.
//
// Its two shapes (many columns: vectors along n; few columns: vectors along m) add in the same order, so they agree to
// the bit: within a run acc = fma(a, b, acc) from zero in order of k; runs are added to the result in order.
#pragma once

#include "columns.h"
#include "panel.h"

namespace moe {
namespace {

// Short runs keep the rounding error of long sums small; this length keeps it below that of the usual float32 matrix
// products.
constexpr int64_t FLOAT_RUN = 64;
static_assert(256 % FLOAT_RUN == 0, "runs may not depend on how a sum is cut into calls");
// Measured: wide vectors gain up to here over columns padded to a whole vector, narrow ones only up to their width.
constexpr int64_t FEW_COLUMNS = LANES > 4 ? 8 : LANES;
// Where the few-column product fetches ahead: bytes along a row, and rows.
constexpr int64_t FEW_BYTES_AHEAD = 512;
constexpr int64_t FEW_ROWS_AHEAD = 16;

inline void copy_row(float* dst, const char* src, DType dtype, int64_t count) {
  const int64_t item = item_size(dtype);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(dst + i, load_as(src + i * item, dtype));
  if (i < count) store_first(dst + i, load_first_as(src + i * item, dtype, count - i), count - i);
}

struct FloatWords {
  using Operand = moe::Operand;
  static constexpr int64_t UNIT = 1, RUN = FLOAT_RUN, SLOTS = 1, DEPTH = 256;
  static constexpr bool SCALED = false;
  static constexpr int64_t SCALE_STEP = 0;

  static MOE_INLINE Vec multiply_add(Vec word, Vec right, Vec sum) { return fma(word, right, sum); }
  static bool direct(const Operand& a, int64_t) { return a.dtype == DType::f32; }
  static Left left(const Operand& a, int64_t row, int64_t k) {
    return {reinterpret_cast<const float*>(a.base) + row * a.row_stride + k, a.row_stride, nullptr, 0, 0};
  }
  static Ahead ahead(const Operand& a, int64_t row, int64_t rows, int64_t depth) {
    const int64_t item = item_size(a.dtype);
    return {a.base + row * a.row_stride * item, rows, a.row_stride * item, depth * item};
  }
  static void copy_row(float* words, const Operand& a, int64_t row, int64_t k, int64_t count) {
    moe::copy_row(words, a.base + (row * a.row_stride + k) * item_size(a.dtype), a.dtype, count);
  }
  static void copy_columns(float* words, const Operand& a, int64_t row, int64_t rows, int64_t k, int64_t count) {
    const int64_t item = item_size(a.dtype);
    const char* src = a.base + (row + k * a.col_stride) * item;
    for (int64_t i = 0; i < count; ++i, src += a.col_stride * item)
      store(words + i * LANES, rows == LANES ? load_as(src, a.dtype) : load_first_as(src, a.dtype, rows));
  }
};

// Rows of k side by side in memory: LANES x LANES blocks are transposed in registers.
template <DType TYPE, int COLUMNS>
inline void product_few_by_rows(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                bool accumulate) {
  constexpr int64_t item = TYPE == DType::f32 ? 4 : 2;
  // Two bfloat16 are transposed as one 32-bit lane, which halves the shuffles; they part by shift and mask.
  constexpr int PER_LANE = TYPE == DType::bf16 ? 2 : 1;
  constexpr int64_t STEP = PER_LANE * LANES;
  static_assert(FLOAT_RUN % STEP == 0, "a run is a number of whole blocks");
  for (int64_t m = 0; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    const char* row[LANES];
    for (int64_t r = 0; r < LANES; ++r) row[r] = a.base + (m + (r < count ? r : count - 1)) * a.row_stride * item;
    Vec sum[COLUMNS], run[COLUMNS] = {};
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t k = 0; k < depth; k += STEP) {
      Vec block[LANES];
      if (depth - k >= STEP) {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) {
          const char* at = row[r] + k * item;
          __builtin_prefetch(at + FEW_BYTES_AHEAD);
          block[r] = PER_LANE == 2 ? load(reinterpret_cast<const float*>(at)) : load_as(at, TYPE);
        }
        transpose(block);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) {
#pragma GCC unroll 2
          for (int half = 0; half < PER_LANE; ++half) {
            const Vec left = PER_LANE == 1 ? block[j] : half == 0 ? low_bf16(block[j]) : high_bf16(block[j]);
#pragma GCC unroll 8
            for (int n = 0; n < COLUMNS; ++n)
              run[n] = fma(left, splat(b[few_word(COLUMNS, k + j * PER_LANE + half, n)]), run[n]);
          }
        }
      } else {
        for (int64_t first = k; first < depth; first += LANES) {
          const int64_t width = depth - first < LANES ? depth - first : LANES;
          for (int r = 0; r < LANES; ++r) {
            const char* at = row[r] + first * item;
            block[r] = width == LANES ? load_as(at, TYPE) : load_first_as(at, TYPE, width);
          }
          transpose(block);
          for (int64_t j = 0; j < width; ++j) {
            for (int n = 0; n < COLUMNS; ++n) run[n] = fma(block[j], splat(b[few_word(COLUMNS, first + j, n)]), run[n]);
          }
        }
      }
      if ((k + STEP) % FLOAT_RUN == 0 || k + STEP >= depth) end_run(sum, run, !accumulate && k < FLOAT_RUN);
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

// Rows of m side by side in memory: a few vectors of each, so that every touch of a row is worth its while.
template <DType TYPE, int COLUMNS, int VECTORS>
inline void product_few_by_columns(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                   bool accumulate) {
  constexpr int64_t item = TYPE == DType::f32 ? 4 : 2;
  constexpr int64_t WIDTH = VECTORS * LANES;
  int64_t m = 0;
  for (; m + WIDTH <= rows; m += WIDTH) {
    Vec sum[VECTORS][COLUMNS], run[VECTORS][COLUMNS] = {};
    for (int v = 0; v < VECTORS; ++v) get_columns(sum[v], c + (m + v * LANES) * ldc, ldc, LANES, accumulate);
    for (int64_t k = 0; k < depth; ++k) {
      const char* at = a.base + (k * a.col_stride + m) * item;
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        __builtin_prefetch(at + v * LANES * item + FEW_ROWS_AHEAD * a.col_stride * item);
        const Vec left = load_as(at + v * LANES * item, TYPE);
#pragma GCC unroll 8
        for (int n = 0; n < COLUMNS; ++n) run[v][n] = fma(left, splat(b[few_word(COLUMNS, k, n)]), run[v][n]);
      }
      if ((k + 1) % FLOAT_RUN == 0 || k + 1 == depth)
        for (int v = 0; v < VECTORS; ++v) end_run(sum[v], run[v], !accumulate && k < FLOAT_RUN);
    }
    for (int v = 0; v < VECTORS; ++v) put_columns(c + (m + v * LANES) * ldc, ldc, sum[v], LANES);
  }
  for (; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    Vec sum[COLUMNS], run[COLUMNS] = {};
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t k = 0; k < depth; ++k) {
      const Vec left = load_first_as(a.base + (k * a.col_stride + m) * item, TYPE, count);
      for (int n = 0; n < COLUMNS; ++n) run[n] = fma(left, splat(b[few_word(COLUMNS, k, n)]), run[n]);
      if ((k + 1) % FLOAT_RUN == 0 || k + 1 == depth) end_run(sum, run, !accumulate && k < FLOAT_RUN);
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

template <DType TYPE, int COLUMNS>
inline void product_few(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                        int64_t columns, bool accumulate) {
  if constexpr (COLUMNS > 1) {
    if (columns < COLUMNS) {
      product_few<TYPE, COLUMNS - 1>(c, ldc, a, rows, depth, b, columns, accumulate);
      return;
    }
  }
  if (a.col_stride == 1)
    product_few_by_rows<TYPE, COLUMNS>(c, ldc, a, rows, depth, b, accumulate);
  else
    product_few_by_columns<TYPE, COLUMNS,
                           (COLUMNS <= 2   ? 4
                            : COLUMNS <= 4 ? 2
                                           : 1)>(c, ldc, a, rows, depth, b, accumulate);
}

inline void product_floats(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                           int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  if (columns > FEW_COLUMNS && a.col_stride == 1)
    panel_by_rows<FloatWords>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
  else if (columns > FEW_COLUMNS)
    panel_by_columns<FloatWords>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
  else if (a.dtype == DType::f32)
    product_few<DType::f32, FEW_COLUMNS>(c, ldc, a, rows, depth, b, columns, accumulate);
  else if (a.dtype == DType::bf16)
    product_few<DType::bf16, FEW_COLUMNS>(c, ldc, a, rows, depth, b, columns, accumulate);
  else
    product_few<DType::f16, FEW_COLUMNS>(c, ldc, a, rows, depth, b, columns, accumulate);
}

}  // namespace
}  // namespace moe
