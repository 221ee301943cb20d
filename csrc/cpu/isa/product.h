// The product of a weight block, read as it lies, with packed activations.
//
// One rule fixes the bits of every element: within a run, acc = fma(a, b, acc) from zero in order of k; runs are added to
// the result in order. The two shapes below (many columns: vectors along n; few columns: vectors along m) both follow
// it, so they agree to the bit.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace moe {
namespace {

// Register tile: TILE_ROWS x up to TILE_VECTORS accumulators, with room for the operands.
#if defined(MOE_ISA_AVX512)
constexpr int TILE_ROWS = 8;
constexpr int TILE_VECTORS = 3;
#elif defined(MOE_ISA_NEON)
constexpr int TILE_ROWS = 4;
constexpr int TILE_VECTORS = 6;
#else
constexpr int TILE_ROWS = 4;
constexpr int TILE_VECTORS = 3;
#endif
static_assert(LANES % TILE_ROWS == 0, "a group of LANES rows is cut into whole tiles");

// A row of the row-major tile copy; the extra line keeps rows of one tile out of one cache set.
constexpr int64_t ROW_PITCH = DEPTH + 16;
constexpr int64_t GROUP_PITCH = DEPTH * LANES + 16;

inline int64_t product_scratch(int64_t rows) {
  const int64_t by_rows = TILE_ROWS * ROW_PITCH;
  const int64_t by_groups = (rows + LANES - 1) / LANES * GROUP_PITCH;
  return by_rows > by_groups ? by_rows : by_groups;
}

// BY_ROWS: a is [row][k] with ROW_PITCH; else [k][row] with LANES rows side by side.
template <int VECTORS, bool BY_ROWS>
inline __attribute__((noinline)) void product_tile(const float* a, const float* b, int64_t ldb, int64_t depth,
                                                   float* c, int64_t ldc, bool accumulate) {
  for (int64_t begin = 0; begin < depth; begin += RUN) {
    const int64_t end = depth - begin < RUN ? depth : begin + RUN;
    Vec acc[TILE_ROWS][VECTORS] = {};
    for (int64_t k = begin; k < end; ++k) {
      Vec right[VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) right[v] = load(b + k * ldb + v * LANES);
#pragma GCC unroll 8
      for (int m = 0; m < TILE_ROWS; ++m) {
        const Vec left = splat(BY_ROWS ? a[m * ROW_PITCH + k] : a[k * LANES + m]);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) acc[m][v] = fma(left, right[v], acc[m][v]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < TILE_ROWS; ++m) {
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) {
        float* at = c + m * ldc + v * LANES;
        store(at, accumulate ? load(at) + acc[m][v] : acc[m][v]);
      }
    }
    accumulate = true;
  }
}

template <bool BY_ROWS, int VECTORS = TILE_VECTORS>
inline void product_panel(int vectors, const float* a, const float* b, int64_t ldb, int64_t depth, float* c,
                          int64_t ldc, bool accumulate) {
  if (vectors == VECTORS)
    product_tile<VECTORS, BY_ROWS>(a, b, ldb, depth, c, ldc, accumulate);
  else if constexpr (VECTORS > 1)
    product_panel<BY_ROWS, VECTORS - 1>(vectors, a, b, ldb, depth, c, ldc, accumulate);
}

template <bool BY_ROWS>
inline void product_strip(const float* a, const float* b, int64_t ldb, int64_t depth, int64_t columns, float* c,
                          int64_t ldc, bool accumulate) {
  int left = static_cast<int>((columns + LANES - 1) / LANES);
  while (left > 0) {
    int width = left;
    // Two panels of like width instead of a full one and a sliver.
    if (width > TILE_VECTORS) width = width < 2 * TILE_VECTORS ? (width + 1) / 2 : TILE_VECTORS;
    product_panel<BY_ROWS>(width, a, b, ldb, depth, c, ldc, accumulate);
    b += width * LANES;
    c += width * LANES;
    left -= width;
  }
}

inline void copy_row(float* dst, const char* src, DType dtype, int64_t count) {
  const int64_t item = item_size(dtype);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(dst + i, load_as(src + i * item, dtype));
  if (i < count) store_first(dst + i, load_first_as(src + i * item, dtype, count - i), count - i);
}

inline void product_many(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                         int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  const int64_t item = item_size(a.dtype);
  if (a.col_stride == 1) {
    for (int64_t m = 0; m < rows; m += TILE_ROWS) {
      // The rows behind the last one repeat it: what they give lands in c's spare rows.
      for (int64_t r = 0; r < TILE_ROWS; ++r) {
        const int64_t row = m + r < rows ? m + r : rows - 1;
        copy_row(scratch + r * ROW_PITCH, a.base + row * a.row_stride * item, a.dtype, depth);
      }
      product_strip<true>(scratch, b, ldb, depth, columns, c + m * ldc, ldc, accumulate);
    }
    return;
  }
  const int64_t groups = (rows + LANES - 1) / LANES;
  for (int64_t k = 0; k < depth; ++k) {
    const char* src = a.base + k * a.col_stride * item;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t count = rows - g * LANES;
      const char* at = src + g * LANES * item;
      store(scratch + g * GROUP_PITCH + k * LANES,
            count >= LANES ? load_as(at, a.dtype) : load_first_as(at, a.dtype, count));
    }
  }
  for (int64_t m = 0; m < rows; m += TILE_ROWS)
    product_strip<false>(scratch + m / LANES * GROUP_PITCH + m % LANES, b, ldb, depth, columns, c + m * ldc, ldc,
                         accumulate);
}

// Columns of c, LANES rows high, into registers and back.
template <int COLUMNS>
MOE_INLINE void get_columns(Vec (&sum)[COLUMNS], const float* c, int64_t ldc, int64_t count, bool wanted) {
  for (int n = 0; n < COLUMNS; ++n) {
    float lane[LANES] = {};
    for (int64_t i = 0; wanted && i < count; ++i) lane[i] = c[i * ldc + n];
    sum[n] = load(lane);
  }
}

template <int COLUMNS>
MOE_INLINE void put_columns(float* c, int64_t ldc, const Vec (&sum)[COLUMNS], int64_t count) {
  for (int n = 0; n < COLUMNS; ++n) {
    float lane[LANES];
    store(lane, sum[n]);
    for (int64_t i = 0; i < count; ++i) c[i * ldc + n] = lane[i];
  }
}

// Adds a run to the sum of the runs before it.
template <int COUNT>
MOE_INLINE void end_run(Vec (&sum)[COUNT], Vec (&run)[COUNT], bool first) {
  for (int i = 0; i < COUNT; ++i) {
    sum[i] = first ? run[i] : sum[i] + run[i];
    run[i] = Vec{};
  }
}

// Rows of k side by side in memory: LANES x LANES blocks are transposed in registers.
template <int COLUMNS>
inline void product_few_by_rows(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                int64_t ldb, bool accumulate) {
  static_assert(RUN % LANES == 0, "a run is a number of whole blocks");
  const int64_t item = item_size(a.dtype);
  for (int64_t m = 0; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    const char* row[LANES];
    for (int64_t r = 0; r < LANES; ++r) row[r] = a.base + (m + (r < count ? r : count - 1)) * a.row_stride * item;
    Vec sum[COLUMNS], run[COLUMNS] = {};
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t k = 0; k < depth; k += LANES) {
      const int64_t width = depth - k < LANES ? depth - k : LANES;
      Vec block[LANES];
      if (width == LANES) {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) block[r] = load_as(row[r] + k * item, a.dtype);
        transpose(block);
#pragma GCC unroll 16
        for (int j = 0; j < LANES; ++j) {
#pragma GCC unroll 4
          for (int n = 0; n < COLUMNS; ++n) run[n] = fma(block[j], splat(b[(k + j) * ldb + n]), run[n]);
        }
      } else {
        for (int r = 0; r < LANES; ++r) block[r] = load_first_as(row[r] + k * item, a.dtype, width);
        transpose(block);
        for (int64_t j = 0; j < width; ++j) {
          for (int n = 0; n < COLUMNS; ++n) run[n] = fma(block[j], splat(b[(k + j) * ldb + n]), run[n]);
        }
      }
      if ((k + LANES) % RUN == 0 || k + LANES >= depth) end_run(sum, run, !accumulate && k < RUN);
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

// Rows of m side by side in memory.
template <int COLUMNS>
inline void product_few_by_columns(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth,
                                   const float* b, int64_t ldb, bool accumulate) {
  const int64_t item = item_size(a.dtype);
  for (int64_t m = 0; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    Vec sum[COLUMNS], run[COLUMNS] = {};
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t k = 0; k < depth; ++k) {
      const char* at = a.base + (k * a.col_stride + m) * item;
      const Vec w = count == LANES ? load_as(at, a.dtype) : load_first_as(at, a.dtype, count);
#pragma GCC unroll 4
      for (int n = 0; n < COLUMNS; ++n) run[n] = fma(w, splat(b[k * ldb + n]), run[n]);
      if ((k + 1) % RUN == 0 || k + 1 == depth) end_run(sum, run, !accumulate && k < RUN);
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

template <int COLUMNS>
inline void product_few(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                        int64_t ldb, int64_t columns, bool accumulate) {
  if constexpr (COLUMNS > 1) {
    if (columns < COLUMNS) {
      product_few<COLUMNS - 1>(c, ldc, a, rows, depth, b, ldb, columns, accumulate);
      return;
    }
  }
  if (a.col_stride == 1)
    product_few_by_rows<COLUMNS>(c, ldc, a, rows, depth, b, ldb, accumulate);
  else
    product_few_by_columns<COLUMNS>(c, ldc, a, rows, depth, b, ldb, accumulate);
}

inline void product(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b, int64_t ldb,
                    int64_t columns, bool accumulate, float* scratch) {
  if (columns <= FEW_COLUMNS)
    product_few<FEW_COLUMNS>(c, ldc, a, rows, depth, b, ldb, columns, accumulate);
  else
    product_many(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
}

}  // namespace
}  // namespace moe
