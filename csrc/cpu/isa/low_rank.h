// Products with a small dimension: rows times the few rows of A, and those few numbers times B.
//
// Neither packs its left operand. A sum is the same whatever rows are computed together: `shrink` adds along k in LANES
// partial sums, stretch by stretch, which are added in a fixed tree; `expand` adds in order of r, in runs, and the base
// at the end.
#pragma once

#include "rows.h"

namespace moe {
namespace {

#if defined(MOE_ISA_AVX512) || defined(MOE_ISA_NEON)
constexpr int SHRINK_ROWS = 6, SHRINK_RANKS = 4;
constexpr int EXPAND_ROWS = 6, EXPAND_VECTORS = 4;
#else
constexpr int SHRINK_ROWS = 4, SHRINK_RANKS = 2;
constexpr int EXPAND_ROWS = 4, EXPAND_VECTORS = 2;
#endif

// k of a row that are worked on at a time: so much of SHRINK_ROWS rows stays in the first-level cache for all of A, and
// sums this short keep the rounding error below that of the usual matrix products.
constexpr int64_t SHRINK_DEPTH = 32 * LANES;
// Rows of A at a time, a multiple of LANES.
constexpr int64_t SHRINK_BLOCK = 32;
// Terms that `expand` adds before they join the sum; keeps the rounding error of large ranks small.
constexpr int64_t EXPAND_RUN = 64;
constexpr int64_t EXPAND_COLUMNS = EXPAND_VECTORS * LANES;

MOE_INLINE void fetch(Upcoming& upcoming, int64_t lines) {
  for (int64_t i = 0; i < lines && upcoming.at < upcoming.end; ++i, upcoming.at += 64)
    __builtin_prefetch(upcoming.at, 0, 2);
}

// How values of a type are multiplied: STEP of them at a time.
template <DType TYPE>
struct Terms {
  static constexpr int64_t STEP = LANES, ITEM = TYPE == DType::f32 ? 4 : 2;
  static MOE_INLINE Vec get(const char* p) { return load_as(p, TYPE); }
  static MOE_INLINE Vec get_first(const char* p, int64_t count) { return load_first_as(p, TYPE, count); }
  static MOE_INLINE Vec multiply_add(Vec a, Vec b, Vec sum) { return fma(a, b, sum); }
};

// sums[i * SHRINK_BLOCK + r] += the terms [k, k + count) of ROWS rows of x times RANKS rows of A.
template <class Kind, int ROWS, int RANKS>
MOE_INLINE void shrink_tile(Vec* sums, const char* const* x, const char* a, int64_t a_stride, int64_t k, int64_t count,
                            Upcoming& upcoming) {
  Vec acc[ROWS][RANKS];
  const char *row[ROWS], *other[RANKS];
  for (int i = 0; i < ROWS; ++i) {
    row[i] = x[i] + k * Kind::ITEM;
    for (int r = 0; r < RANKS; ++r) acc[i][r] = Vec{};
  }
  for (int r = 0; r < RANKS; ++r) other[r] = a + r * a_stride + k * Kind::ITEM;
  const auto step = [&](auto&& get, int64_t at) {
    Vec right[RANKS];
#pragma GCC unroll 4
    for (int r = 0; r < RANKS; ++r) right[r] = get(other[r] + at);
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; ++i) {
      const Vec left = get(row[i] + at);
#pragma GCC unroll 4
      for (int r = 0; r < RANKS; ++r) acc[i][r] = Kind::multiply_add(left, right[r], acc[i][r]);
    }
  };
  int64_t j = 0;
  for (; j + Kind::STEP <= count; j += Kind::STEP) {
    fetch(upcoming, RANKS);
    step([](const char* p) __attribute__((always_inline)) { return Kind::get(p); }, j * Kind::ITEM);
  }
  if (j < count) step([&](const char* p) { return Kind::get_first(p, count - j); }, j * Kind::ITEM);
  for (int i = 0; i < ROWS; ++i)
    for (int r = 0; r < RANKS; ++r) sums[i * SHRINK_BLOCK + r] += acc[i][r];
}

template <class Kind, int ROWS, int RANKS = SHRINK_RANKS>
inline void shrink_ranks(Vec* sums, const char* const* x, const char* a, int64_t a_stride, int64_t k, int64_t count,
                         int64_t ranks, Upcoming& upcoming) {
  if (ranks >= RANKS)
    shrink_tile<Kind, ROWS, RANKS>(sums, x, a, a_stride, k, count, upcoming);
  else if constexpr (RANKS > 1)
    shrink_ranks<Kind, ROWS, RANKS - 1>(sums, x, a, a_stride, k, count, ranks, upcoming);
}

// Lane i of the result is the sum of v[i]'s lanes, in the tree of sum_lanes.
MOE_INLINE Vec sums_of(Vec (&v)[LANES]) {
  transpose(v);
#pragma GCC unroll 4
  for (int width = LANES / 2; width > 0; width /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}

// h[i * ldh + r] for ROWS rows and at most SHRINK_BLOCK rows of A.
template <class Kind, int ROWS>
inline void shrink_rows(float* h, int64_t ldh, const char* const* x, const char* a, int64_t a_stride, int64_t ranks,
                        int64_t depth, Upcoming& upcoming) {
  Vec sums[ROWS * SHRINK_BLOCK] = {};
  for (int64_t k = 0; k < depth; k += SHRINK_DEPTH) {
    const int64_t count = depth - k < SHRINK_DEPTH ? depth - k : SHRINK_DEPTH;
    for (int64_t r = 0; r < ranks; r += SHRINK_RANKS)
      shrink_ranks<Kind, ROWS>(sums + r, x, a + r * a_stride, a_stride, k, count, ranks - r, upcoming);
  }
  for (int i = 0; i < ROWS; ++i)
    for (int64_t r = 0; r < ranks; r += LANES) {
      Vec block[LANES];
      for (int j = 0; j < LANES; ++j) block[j] = sums[i * SHRINK_BLOCK + r + j];
      store_first(h + i * ldh + r, sums_of(block), ranks - r < LANES ? ranks - r : LANES);
    }
}

template <class Kind, int ROWS = SHRINK_ROWS>
inline void shrink_some(float* h, int64_t ldh, const char* const* x, int64_t rows, const char* a, int64_t a_stride,
                        int64_t ranks, int64_t depth, Upcoming& upcoming) {
  if (rows >= ROWS)
    shrink_rows<Kind, ROWS>(h, ldh, x, a, a_stride, ranks, depth, upcoming);
  else if constexpr (ROWS > 1)
    shrink_some<Kind, ROWS - 1>(h, ldh, x, rows, a, a_stride, ranks, depth, upcoming);
}

template <class Kind>
inline void shrink_as(float* h, int64_t ldh, const Rows& rows, int64_t count, const Operand& a, int64_t rank,
                      int64_t depth, Upcoming& upcoming) {
  for (int64_t i = 0; i < count; i += SHRINK_ROWS) {
    const char* x[SHRINK_ROWS];
    for (int64_t m = 0; m < SHRINK_ROWS; ++m) x[m] = i + m < count ? rows.at(i + m, 0) : nullptr;
    for (int64_t r = 0; r < rank; r += SHRINK_BLOCK)
      shrink_some<Kind>(h + i * ldh + r, ldh, x, count - i, a.base + r * a.row_stride * Kind::ITEM,
                        a.row_stride * Kind::ITEM, rank - r < SHRINK_BLOCK ? rank - r : SHRINK_BLOCK, depth, upcoming);
  }
}

inline void shrink(float* h, int64_t ldh, const Rows& rows, int64_t count, const Operand& a, int64_t rank,
                   int64_t depth, Upcoming upcoming) {
  if (a.dtype == DType::f32)
    shrink_as<Terms<DType::f32>>(h, ldh, rows, count, a, rank, depth, upcoming);
  else if (a.dtype == DType::bf16)
    shrink_as<Terms<DType::bf16>>(h, ldh, rows, count, a, rank, depth, upcoming);
  else
    shrink_as<Terms<DType::f16>>(h, ldh, rows, count, a, rank, depth, upcoming);
}

// packed[panel][r][j] = b(panel * EXPAND_COLUMNS + j, r), zero behind the last column.
inline void pack_expand(float* packed, const Operand& b, int64_t columns, int64_t rank) {
  const int64_t item = item_size(b.dtype);
  for (int64_t first = 0; first < columns; first += EXPAND_COLUMNS, packed += rank * EXPAND_COLUMNS) {
    for (int64_t v = 0; v < EXPAND_COLUMNS; v += LANES) {
      const int64_t left = columns - first - v, width = left < LANES ? (left > 0 ? left : 0) : LANES;
      const char* from = b.base + (first + v) * b.row_stride * item;
      if (b.row_stride == 1) {
        for (int64_t r = 0; r < rank; ++r) {
          const char* at = from + r * b.col_stride * item;
          store(packed + r * EXPAND_COLUMNS + v,
                width == LANES ? load_as(at, b.dtype) : load_first_as(at, b.dtype, width));
        }
        continue;
      }
      for (int64_t r = 0; r < rank; r += LANES) {
        const int64_t ranks = rank - r < LANES ? rank - r : LANES;
        Vec block[LANES];
        if (width == LANES && ranks == LANES) {
#pragma GCC unroll 16
          for (int j = 0; j < LANES; ++j) block[j] = load_as(from + (j * b.row_stride + r) * item, b.dtype);
        } else {
          for (int64_t j = 0; j < LANES; ++j)
            block[j] = j < width ? load_first_as(from + (j * b.row_stride + r) * item, b.dtype, ranks) : Vec{};
        }
        transpose(block);
        for (int64_t j = 0; j < ranks; ++j) store(packed + (r + j) * EXPAND_COLUMNS + v, block[j]);
      }
    }
  }
}

// acc[i][v] = Σ_r h(i, r) · panel(r, v), r in [first, end).
template <int ROWS>
MOE_INLINE void expand_run(Vec (&acc)[ROWS][EXPAND_VECTORS], const float* h, int64_t ldh, const float* panel,
                           int64_t first, int64_t end) {
  for (int i = 0; i < ROWS; ++i)
    for (int v = 0; v < EXPAND_VECTORS; ++v) acc[i][v] = Vec{};
  for (int64_t r = first; r < end; ++r) {
    Vec right[EXPAND_VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < EXPAND_VECTORS; ++v) right[v] = load(panel + r * EXPAND_COLUMNS + v * LANES);
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; ++i) {
      const Vec left = splat(h[i * ldh + r]);
#pragma GCC unroll 4
      for (int v = 0; v < EXPAND_VECTORS; ++v) acc[i][v] = fma(left, right[v], acc[i][v]);
    }
  }
}

// ROWS rows of a panel; `base` holds null pointers where there is none.
template <DType TYPE, int ROWS>
inline void expand_tile(char* const* out, const char* const* base, const float* h, int64_t ldh, const float* panel,
                        int64_t rank, int64_t columns) {
  constexpr int64_t ITEM = TYPE == DType::f32 ? 4 : 2;
  Vec sum[ROWS][EXPAND_VECTORS];
  expand_run<ROWS>(sum, h, ldh, panel, 0, rank < EXPAND_RUN ? rank : EXPAND_RUN);
  for (int64_t first = EXPAND_RUN; first < rank; first += EXPAND_RUN) {
    Vec acc[ROWS][EXPAND_VECTORS];
    expand_run<ROWS>(acc, h, ldh, panel, first, rank - first < EXPAND_RUN ? rank : first + EXPAND_RUN);
    for (int i = 0; i < ROWS; ++i)
      for (int v = 0; v < EXPAND_VECTORS; ++v) sum[i][v] += acc[i][v];
  }
#pragma GCC unroll 6
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < EXPAND_VECTORS; ++v) {
      const int64_t at = v * LANES * ITEM, width = columns - v * LANES;
      if (width >= LANES) {
        if (base[i]) sum[i][v] += load_as(base[i] + at, TYPE);
        store_as(out[i] + at, TYPE, sum[i][v]);
      } else if (width > 0) {
        if (base[i]) sum[i][v] += load_first_as(base[i] + at, TYPE, width);
        store_first_as(out[i] + at, TYPE, sum[i][v], width);
      }
    }
}

template <DType TYPE, int ROWS = EXPAND_ROWS>
inline void expand_some(char* const* out, const char* const* base, const float* h, int64_t ldh, int64_t rows,
                        const float* panel, int64_t rank, int64_t columns) {
  if (rows >= ROWS)
    expand_tile<TYPE, ROWS>(out, base, h, ldh, panel, rank, columns);
  else if constexpr (ROWS > 1)
    expand_some<TYPE, ROWS - 1>(out, base, h, ldh, rows, panel, rank, columns);
}

template <DType TYPE>
inline void expand_as(const RowsOut& out, int64_t first, const float* h, int64_t ldh, int64_t count,
                      const float* packed, int64_t rank, int64_t columns) {
  constexpr int64_t ITEM = TYPE == DType::f32 ? 4 : 2;
  for (int64_t i = 0; i < count; i += EXPAND_ROWS) {
    char* to[EXPAND_ROWS];
    const char* base[EXPAND_ROWS];
    for (int64_t m = 0; m < EXPAND_ROWS; ++m) {
      const int64_t at = i + m < count ? (out.index[i + m] * out.stride + first) * ITEM : 0;
      to[m] = out.data + at;
      base[m] = out.base ? out.base + at : nullptr;
    }
    const float* panel = packed;
    for (int64_t j = 0; j < columns; j += EXPAND_COLUMNS, panel += rank * EXPAND_COLUMNS) {
      expand_some<TYPE>(to, base, h + i * ldh, ldh, count - i, panel, rank, columns - j);
      for (int64_t m = 0; m < EXPAND_ROWS; ++m) {
        to[m] += EXPAND_COLUMNS * ITEM;
        if (base[m]) base[m] += EXPAND_COLUMNS * ITEM;
      }
    }
  }
}

inline void expand(const RowsOut& out, int64_t first, const float* h, int64_t ldh, int64_t count, const float* packed,
                   int64_t rank, int64_t columns) {
  if (out.dtype == DType::f32)
    expand_as<DType::f32>(out, first, h, ldh, count, packed, rank, columns);
  else if (out.dtype == DType::bf16)
    expand_as<DType::bf16>(out, first, h, ldh, count, packed, rank, columns);
  else
    expand_as<DType::f16>(out, first, h, ldh, count, packed, rank, columns);
}

}  // namespace
}  // namespace moe
