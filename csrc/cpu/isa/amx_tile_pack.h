// Rows of data as AMX tiles, a tile being 1024 bytes in one piece: what the products of the backward read.
#pragma once

#include <algorithm>

#include "amx_tile.h"
#include "pack_pairs.h"

namespace moe {
namespace {

constexpr int64_t TILE_BYTES = TILE_SIDE * TILE_ROW_BYTES;
// Rows or columns of two tiles of float32, and the k of one product.
constexpr int64_t TILE_PAIR = 2 * TILE_SIDE;

inline int64_t whole_pairs(int64_t count) { return (count + TILE_PAIR - 1) / TILE_PAIR * TILE_PAIR; }

// 32 values of row i from a column on, of which `width` exist, rounded to bfloat16; zeros where there is no such row.
MOE_INLINE Vec line_of(const Rows& rows, int64_t i, int64_t count, int64_t column, int64_t width) {
  if (i >= count) return Vec{};
  return row_words(rows.at(i, column), rows.dtype, width, rows.scale ? rows.scale + i : nullptr);
}

// The 128-bit quarters of both in the order low 0, high 0, low 1, high 1; and those of the upper halves.
MOE_INLINE Vec join_lower(Vec low, Vec high) {
  const __m512i order = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  return reinterpret_cast<Vec>(
      _mm512_permutex2var_epi64(reinterpret_cast<__m512i>(low), order, reinterpret_cast<__m512i>(high)));
}
MOE_INLINE Vec join_upper(Vec low, Vec high) {
  const __m512i order = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  return reinterpret_cast<Vec>(
      _mm512_permutex2var_epi64(reinterpret_cast<__m512i>(low), order, reinterpret_cast<__m512i>(high)));
}

// Two rows of 32 values as words (first, second): `low` has the words of the columns 8i to 8i+3, `high` those of 8i+4
// to 8i+7. Joined they are in the columns' order.
struct WordPair {
  Vec low, high;
};
MOE_INLINE WordPair interleave(Vec first, Vec second) {
  const __m512i a = reinterpret_cast<__m512i>(first), b = reinterpret_cast<__m512i>(second);
  return {reinterpret_cast<Vec>(_mm512_unpacklo_epi16(a, b)), reinterpret_cast<Vec>(_mm512_unpackhi_epi16(a, b))};
}

// A left operand as its rows lie: 16 of `count` rows by 32 k.
inline void pack_left(char* tile, const Rows& rows, int64_t first, int64_t count, int64_t column, int64_t width) {
  for (int64_t r = 0; r < TILE_SIDE; ++r)
    store(reinterpret_cast<float*>(tile + r * TILE_ROW_BYTES), line_of(rows, first + r, count, column, width));
}

// A right operand whose k are rows: 32 of `count` rows by two tiles of columns.
inline void pack_right(char* tiles, const Rows& rows, int64_t first, int64_t count, int64_t column, int64_t width) {
  for (int64_t w = 0; w < TILE_SIDE; ++w) {
    const WordPair words = interleave(line_of(rows, first + 2 * w, count, column, width),
                                      line_of(rows, first + 2 * w + 1, count, column, width));
    float* to = reinterpret_cast<float*>(tiles + w * TILE_ROW_BYTES);
    store(to, join_lower(words.low, words.high));
    store(to + TILE_BYTES / 4, join_upper(words.low, words.high));
  }
}

// A left operand whose k are rows: two tiles of columns, as their rows, by 32 of `count` rows.
inline void pack_left_across(char* tiles, int64_t tile_step, const Rows& rows, int64_t first, int64_t count,
                             int64_t column, int64_t width) {
  Vec lower[LANES], upper[LANES];
#pragma GCC unroll 16
  for (int64_t w = 0; w < TILE_SIDE; ++w) {
    const WordPair words = interleave(line_of(rows, first + 2 * w, count, column, width),
                                      line_of(rows, first + 2 * w + 1, count, column, width));
    lower[w] = join_lower(words.low, words.high);
    upper[w] = join_upper(words.low, words.high);
  }
  transpose(lower);
  transpose(upper);
  for (int64_t r = 0; r < TILE_SIDE; ++r) {
    float* to = reinterpret_cast<float*>(tiles + r * TILE_ROW_BYTES);
    store(to, lower[r]);
    store(to + tile_step / 4, upper[r]);
  }
}

// Four tiles of float32 sums, a block of 32 by 32 floats: += left (two tiles, `left_step` bytes apart) · right (two
// tiles side by side), over `steps` of 32 k.
// Which operand passes the first-level cache by, because the other one stays there.
enum class Streamed { left, right };
template <int TILE, bool STREAMED>
MOE_INLINE void operand_tile(const char* tile) {
  if constexpr (STREAMED)
    tile_stream<TILE>(tile, TILE_ROW_BYTES);
  else
    tile_load<TILE>(tile, TILE_ROW_BYTES);
}

template <int ROWS, Streamed PAST>
inline void multiply_tiles(float* block, const char* left, int64_t left_step, const char* right, int64_t steps,
                           bool accumulate) {
  constexpr bool LEFT = PAST == Streamed::left, RIGHT = PAST == Streamed::right;
  constexpr int64_t STRIDE = TILE_PAIR * 4;
  float* below = block + TILE_SIDE * TILE_PAIR;
  if (accumulate) {
    tile_load<0>(block, STRIDE);
    tile_load<1>(block + TILE_SIDE, STRIDE);
    if constexpr (ROWS == 2) tile_load<2>(below, STRIDE);
    if constexpr (ROWS == 2) tile_load<3>(below + TILE_SIDE, STRIDE);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  for (int64_t s = 0; s < steps; ++s, left += TILE_BYTES, right += 2 * TILE_BYTES) {
    operand_tile<6, RIGHT>(right);
    operand_tile<4, LEFT>(left);
    tile_dot_bf16<0, 4, 6>();
    operand_tile<7, RIGHT>(right + TILE_BYTES);
    tile_dot_bf16<1, 4, 7>();
    if constexpr (ROWS == 2) {
      operand_tile<5, LEFT>(left + left_step);
      tile_dot_bf16<2, 5, 6>();
      tile_dot_bf16<3, 5, 7>();
    }
  }
  tile_store<0>(block, STRIDE);
  tile_store<1>(block + TILE_SIDE, STRIDE);
  if constexpr (ROWS == 2) tile_store<2>(below, STRIDE);
  if constexpr (ROWS == 2) tile_store<3>(below + TILE_SIDE, STRIDE);
}

}  // namespace
}  // namespace moe
