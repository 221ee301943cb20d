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
// Measured: wide vectors gain up to here over columns padded to a whole vector, narrow ones only up to their width.
constexpr int64_t FEW_COLUMNS = LANES > 4 ? 8 : LANES;
// Where the few-column product fetches ahead: bytes along a row, and rows.
constexpr int64_t FEW_BYTES_AHEAD = 512;
constexpr int64_t FEW_ROWS_AHEAD = 16;
static_assert(LANES % TILE_ROWS == 0, "a group of LANES rows is cut into whole tiles");

// A row of the row-major tile copy; the extra line keeps rows of one tile out of one cache set.
constexpr int64_t ROW_PITCH = DEPTH + 16;
constexpr int64_t PRODUCT_SCRATCH = TILE_ROWS * ROW_PITCH > DEPTH * LANES ? TILE_ROWS * ROW_PITCH : DEPTH * LANES;

// The part of a weight that the next tile will read. It is fetched while this tile computes: its rows are too short for
// the hardware to notice in time. Null base: nothing.
struct Ahead {
  const char* base = nullptr;
  int64_t row_bytes = 0;
  int64_t steps = 0;

  template <bool BY_ROWS>
  MOE_INLINE void fetch(int64_t step) const {
    constexpr int64_t ROWS = BY_ROWS ? TILE_ROWS : DEPTH;
    if (step < steps) __builtin_prefetch(base + step % ROWS * row_bytes + step / ROWS * 64, 0, 2);
  }
};

// BY_ROWS: a is [row][k] with ROW_PITCH; else [k][row] with LANES rows side by side.
template <int VECTORS, bool BY_ROWS>
inline __attribute__((noinline)) void product_tile(const float* a, const float* b, int64_t ldb, int64_t depth,
                                                   float* c, int64_t ldc, bool accumulate, Ahead ahead) {
  for (int64_t begin = 0; begin < depth; begin += RUN) {
    const int64_t end = depth - begin < RUN ? depth : begin + RUN;
    Vec acc[TILE_ROWS][VECTORS] = {};
    for (int64_t k = begin; k < end; ++k) {
      ahead.fetch<BY_ROWS>(k);
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
                          int64_t ldc, bool accumulate, const Ahead& ahead) {
  if (vectors == VECTORS)
    product_tile<VECTORS, BY_ROWS>(a, b, ldb, depth, c, ldc, accumulate, ahead);
  else if constexpr (VECTORS > 1)
    product_panel<BY_ROWS, VECTORS - 1>(vectors, a, b, ldb, depth, c, ldc, accumulate, ahead);
}

template <bool BY_ROWS>
inline void product_strip(const float* a, const float* b, int64_t ldb, int64_t depth, int64_t columns, float* c,
                          int64_t ldc, bool accumulate, Ahead ahead) {
  int left = static_cast<int>((columns + LANES - 1) / LANES);
  while (left > 0) {
    int width = left;
    // Two panels of like width instead of a full one and a sliver.
    if (width > TILE_VECTORS) width = width < 2 * TILE_VECTORS ? (width + 1) / 2 : TILE_VECTORS;
    product_panel<BY_ROWS>(width, a, b, ldb, depth, c, ldc, accumulate, ahead);
    ahead.steps = 0;
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

// LANES columns of rows that lie `stride` bytes apart.
inline void copy_columns(float* dst, const char* src, DType dtype, int64_t stride, int64_t rows, int64_t count) {
  for (int64_t k = 0; k < rows; ++k, src += stride)
    store(dst + k * LANES, count == LANES ? load_as(src, dtype) : load_first_as(src, dtype, count));
}

inline void product_many(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                         int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  const int64_t item = item_size(a.dtype);
  if (a.col_stride == 1) {
    Ahead ahead{a.base, a.row_stride * item, TILE_ROWS * ((depth * item + 63) / 64)};
    for (int64_t m = 0; m < rows; m += TILE_ROWS) {
      // The rows behind the last one repeat it: what they give lands in c's spare rows.
      for (int64_t r = 0; r < TILE_ROWS; ++r) {
        const int64_t row = m + r < rows ? m + r : rows - 1;
        copy_row(scratch + r * ROW_PITCH, a.base + row * a.row_stride * item, a.dtype, depth);
      }
      ahead.base += TILE_ROWS * ahead.row_bytes;
      if (m + TILE_ROWS >= rows) ahead.steps = 0;
      product_strip<true>(scratch, b, ldb, depth, columns, c + m * ldc, ldc, accumulate, ahead);
    }
    return;
  }
  Ahead ahead{a.base, a.col_stride * item, 0};
  for (int64_t g = 0; g < rows; g += LANES) {
    const int64_t count = rows - g < LANES ? rows - g : LANES;
    copy_columns(scratch, a.base + g * item, a.dtype, ahead.row_bytes, depth, count);
    ahead.base += LANES * item;
    ahead.steps = g + LANES < rows ? depth : 0;
    for (int64_t m = 0; m < count; m += TILE_ROWS) {
      product_strip<false>(scratch + m, b, ldb, depth, columns, c + (g + m) * ldc, ldc, accumulate, ahead);
      ahead.steps = 0;
    }
  }
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
template <DType TYPE, int COLUMNS>
inline void product_few_by_rows(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                int64_t ldb, bool accumulate) {
  constexpr int64_t item = TYPE == DType::f32 ? 4 : 2;
  // Two bfloat16 are transposed as one 32-bit lane, which halves the shuffles; they part by shift and mask.
  constexpr int PER_LANE = TYPE == DType::bf16 ? 2 : 1;
  constexpr int64_t STEP = PER_LANE * LANES;
  static_assert(RUN % STEP == 0, "a run is a number of whole blocks");
  for (int64_t m = 0; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    const char* row[LANES];
    for (int64_t r = 0; r < LANES; ++r) row[r] = a.base + (m + (r < count ? r : count - 1)) * a.row_stride * item;
    Vec sum[COLUMNS], run[COLUMNS] = {};
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t k = 0; k < depth; k += STEP) {
      const float* right = b + k * ldb;
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
              run[n] = fma(left, splat(right[(j * PER_LANE + half) * ldb + n]), run[n]);
          }
        }
      } else {
        for (int64_t first = k; first < depth; first += LANES) {
          const int64_t width = depth - first < LANES ? depth - first : LANES;
          for (int r = 0; r < LANES; ++r) block[r] = load_first_as(row[r] + first * item, TYPE, width);
          transpose(block);
          for (int64_t j = 0; j < width; ++j) {
            for (int n = 0; n < COLUMNS; ++n) run[n] = fma(block[j], splat(b[(first + j) * ldb + n]), run[n]);
          }
        }
      }
      if ((k + STEP) % RUN == 0 || k + STEP >= depth) end_run(sum, run, !accumulate && k < RUN);
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

// Rows of m side by side in memory: a few vectors of each, so that every touch of a row is worth its while.
template <DType TYPE, int COLUMNS, int VECTORS>
inline void product_few_by_columns(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth,
                                   const float* b, int64_t ldb, bool accumulate) {
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
        for (int n = 0; n < COLUMNS; ++n) run[v][n] = fma(left, splat(b[k * ldb + n]), run[v][n]);
      }
      if ((k + 1) % RUN == 0 || k + 1 == depth)
        for (int v = 0; v < VECTORS; ++v) end_run(sum[v], run[v], !accumulate && k < RUN);
    }
    for (int v = 0; v < VECTORS; ++v) put_columns(c + (m + v * LANES) * ldc, ldc, sum[v], LANES);
  }
  for (; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    Vec sum[COLUMNS], run[COLUMNS] = {};
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t k = 0; k < depth; ++k) {
      const Vec left = load_first_as(a.base + (k * a.col_stride + m) * item, TYPE, count);
      for (int n = 0; n < COLUMNS; ++n) run[n] = fma(left, splat(b[k * ldb + n]), run[n]);
      if ((k + 1) % RUN == 0 || k + 1 == depth) end_run(sum, run, !accumulate && k < RUN);
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

template <DType TYPE, int COLUMNS>
inline void product_few(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                        int64_t ldb, int64_t columns, bool accumulate) {
  if constexpr (COLUMNS > 1) {
    if (columns < COLUMNS) {
      product_few<TYPE, COLUMNS - 1>(c, ldc, a, rows, depth, b, ldb, columns, accumulate);
      return;
    }
  }
  if (a.col_stride == 1)
    product_few_by_rows<TYPE, COLUMNS>(c, ldc, a, rows, depth, b, ldb, accumulate);
  else
    product_few_by_columns<TYPE, COLUMNS, (COLUMNS <= 2 ? 4 : COLUMNS <= 4 ? 2 : 1)>(c, ldc, a, rows, depth, b, ldb, accumulate);
}

inline void product(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b, int64_t ldb,
                    int64_t columns, bool accumulate, float* scratch) {
  if (columns > FEW_COLUMNS)
    product_many(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
  else if (a.dtype == DType::f32)
    product_few<DType::f32, FEW_COLUMNS>(c, ldc, a, rows, depth, b, ldb, columns, accumulate);
  else if (a.dtype == DType::bf16)
    product_few<DType::bf16, FEW_COLUMNS>(c, ldc, a, rows, depth, b, ldb, columns, accumulate);
  else
    product_few<DType::f16, FEW_COLUMNS>(c, ldc, a, rows, depth, b, ldb, columns, accumulate);
}

}  // namespace
}  // namespace moe
