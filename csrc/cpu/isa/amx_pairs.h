// bfloat16 weights on AMX: the weight is the A operand, in its own rows where they lie whole in memory; the packed
// words are B. One order at every size: a tile's 32 k are one product, products are added in order of k.
#pragma once

#include <algorithm>

#include "amx_dense.h"
#include "amx_tile.h"
#include "pairs.h"

namespace moe {
namespace {

// 16 rows of the left operand from some k on, as tiles: in memory, or copied to scratch and filled up with zeros.
struct TileRows {
  const char* base;
  int64_t stride;  // bytes from row to row

  const char* at(int64_t word) const { return base + word * 4; }
};

// Words of a row that are worked on at a time: 32 rows of them stay in the first-level cache for all columns. A copy
// has a line more, which keeps its rows out of one cache set.
constexpr int64_t AMX_DEPTH = 256;
constexpr int64_t AMX_PITCH = AMX_DEPTH + 16;

// Up to so many columns rows are read where they lie. For more, a copy pays: rows whose distance is a power of two
// evict each other before the next columns read them again.
constexpr int64_t DIRECT_COLUMNS = 64;

// Kinds of left operands: `whole` rows that a tile may read where they are, or a copy of them.
struct AmxDense {
  static bool direct(const Operand& a, int64_t depth) { return a.col_stride == 1 && depth % 32 == 0; }
  static const char* row(const Operand& a, int64_t row, int64_t k) { return a.base + (row * a.row_stride + k) * 2; }
  static int64_t row_bytes(const Operand& a) { return a.row_stride * 2; }
  static Ahead ahead(const Operand& a, int64_t row, int64_t rows, int64_t depth) {
    return a.col_stride == 1 ? PairWords::ahead(a, row, rows, depth) : Ahead();
  }

  // Words [k / 2, …) of `count` rows from `row` on, zeros after depth and below the last row.
  static void copy(float* words, const Operand& a, int64_t row, int64_t count, int64_t k, int64_t depth) {
    const int64_t filled = (depth + 31) / 32 * 16;
    if (a.col_stride == 1) {
      for (int64_t r = 0; r < TILE_SIDE; ++r) {
        float* to = words + r * AMX_PITCH;
        if (r >= count) {
          std::memset(to, 0, static_cast<size_t>(filled) * sizeof(float));
          continue;
        }
        for (int64_t w = 0; w < filled; w += LANES)
          store(to + w, load_first_pairs(a.base + ((row + r) * a.row_stride + k + 2 * w) * 2, depth - 2 * w));
      }
      return;
    }
    for (int64_t w = 0; w < filled; w += LANES) {
      Vec block[LANES];
      for (int64_t i = 0; i < LANES; ++i) {
        const int64_t at = 2 * (w + i);
        const char* src = a.base + (row + (k + at) * a.col_stride) * 2;
        const VecU low = at < depth ? load_first_bits(src, count) : VecU{};
        const VecU high = at + 1 < depth ? load_first_bits(src + a.col_stride * 2, count) : VecU{};
        block[i] = reinterpret_cast<Vec>(low | high << 16);
      }
      transpose(block);
      for (int64_t r = 0; r < LANES; ++r) store(words + r * AMX_PITCH + w, block[r]);
    }
  }
};

// One or two tiles of rows by one or two of columns, over `words` (a multiple of 16).
template <int ROWS, int COLUMNS>
inline void amx_block(const TileRows (&left)[2], const float* b, int64_t ldb, int64_t words, float* c, int64_t ldc,
                      bool accumulate, Ahead& ahead) {
  const int64_t c_stride = ldc * 4, b_stride = ldb * 4;
  float *c10 = c + TILE_SIDE * ldc, *c01 = c + TILE_SIDE, *c11 = c10 + TILE_SIDE;
  if (accumulate) {
    tile_load<0>(c, c_stride);
    if constexpr (COLUMNS == 2) tile_load<1>(c01, c_stride);
    if constexpr (ROWS == 2) tile_load<2>(c10, c_stride);
    if constexpr (ROWS == 2 && COLUMNS == 2) tile_load<3>(c11, c_stride);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  for (int64_t w = 0; w < words; w += TILE_SIDE) {
    for (int i = 0; i < ROWS * TILE_SIDE; ++i) ahead.fetch();
    tile_load<6>(b + w * ldb, b_stride);
    tile_load<4>(left[0].at(w), left[0].stride);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (COLUMNS == 2) {
      tile_load<7>(b + w * ldb + TILE_SIDE, b_stride);
      tile_dot_bf16<1, 4, 7>();
    }
    if constexpr (ROWS == 2) {
      tile_load<5>(left[1].at(w), left[1].stride);
      tile_dot_bf16<2, 5, 6>();
      if constexpr (COLUMNS == 2) tile_dot_bf16<3, 5, 7>();
    }
  }
  tile_store<0>(c, c_stride);
  if constexpr (COLUMNS == 2) tile_store<1>(c01, c_stride);
  if constexpr (ROWS == 2) tile_store<2>(c10, c_stride);
  if constexpr (ROWS == 2 && COLUMNS == 2) tile_store<3>(c11, c_stride);
}

template <class Kind>
inline void product_amx(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                        int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  tile_begin();
  const int64_t padded = (columns + TILE_SIDE - 1) / TILE_SIDE * TILE_SIDE, height = 2 * TILE_SIDE;
  for (int64_t m = 0; m < rows; m += height) {
    const int64_t count = std::min(rows - m, height);
    Ahead ahead = ahead_of<Kind>(a, m + height, rows, height, depth);
    for (int64_t k = 0; k < depth; k += 2 * AMX_DEPTH) {
      const int64_t part = std::min(depth - k, 2 * AMX_DEPTH), words = (part + 31) / 32 * 16;
      TileRows left[2];
      for (int64_t t = 0; t < 2; ++t) {
        const int64_t row = m + t * TILE_SIDE, there = std::min(rows - row, TILE_SIDE);
        if (there == TILE_SIDE && padded <= DIRECT_COLUMNS && Kind::direct(a, part)) {
          left[t] = {Kind::row(a, row, k), Kind::row_bytes(a)};
          continue;
        }
        float* copy = scratch + t * TILE_SIDE * AMX_PITCH;
        if (there > 0) Kind::copy(copy, a, row, there, k, part);
        left[t] = {reinterpret_cast<const char*>(copy), AMX_PITCH * 4};
      }
      const bool add = accumulate || k > 0;
      const float* right = b + k / 2 * ldb;
      float* to = c + m * ldc;
      for (int64_t n = 0; n < padded; n += 2 * TILE_SIDE) {
        const bool wide = n + TILE_SIDE < padded;
        if (count > TILE_SIDE && wide)
          amx_block<2, 2>(left, right + n, ldb, words, to + n, ldc, add, ahead);
        else if (count > TILE_SIDE)
          amx_block<2, 1>(left, right + n, ldb, words, to + n, ldc, add, ahead);
        else if (wide)
          amx_block<1, 2>(left, right + n, ldb, words, to + n, ldc, add, ahead);
        else
          amx_block<1, 1>(left, right + n, ldb, words, to + n, ldc, add, ahead);
      }
    }
  }
  tile_end();
}

// With zeros up to a whole tile of words.
inline void fill_words(float* b, int64_t ldb, int64_t depth) {
  const int64_t words = (depth + 1) / 2, filled = (words + TILE_SIDE - 1) / TILE_SIDE * TILE_SIDE;
  std::memset(b + words * ldb, 0, static_cast<size_t>((filled - words) * ldb) * sizeof(float));
}
inline void pack_rows_amx(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column,
                          int64_t columns) {
  pack_rows_pairs(b, ldb, rows, count, first_column, columns);
  fill_words(b, ldb, count);
}
constexpr Form AMX_PAIRS = {DType::bf16,
                            PairWords::UNIT,
                            DENSE_DEPTH,
                            1,
                            1,
                            TILE_SIDE,
                            0,
                            0,
                            std::max(DENSE_SCRATCH, 2 * TILE_SIDE * AMX_PITCH),
                            product_dense,
                            product_amx<AmxDense>,
                            pack_columns_dense,
                            pack_rows_amx,
                            pack_block_dense,
                            TILE_SIDE,
                            256};

}  // namespace
}  // namespace moe
