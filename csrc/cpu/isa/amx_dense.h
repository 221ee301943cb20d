// bfloat16 weights on AMX: the weight is the A operand, read in its own rows where they lie; the packed words are B.
// One order at every size: a tile's 32 k are one product, products are added in order of k.
//
// B lies in panels of 16 columns, each of them whole in memory, so that a tile is 1 KiB in one piece.
#pragma once

#include <algorithm>

#include "amx_tile.h"
#include "amx_words.h"
#include "pack_pairs.h"

namespace moe {
namespace {

// Words of a row that more than a few columns take at a time. Two tiles of rows, 16 KiB, stay in the first-level cache
// while all columns come past from the second level.
constexpr int64_t DENSE_DEPTH = 128;

// A step is a tile's depth: 16 words. Of each step, both tiles of rows lie side by side.
constexpr int64_t STEP_FLOATS = 2 * TILE_WORDS;
constexpr int64_t DENSE_SCRATCH = DENSE_DEPTH / TILE_SIDE * STEP_FLOATS;

// Up to so many columns, memory is the limit, which likes long stretches: all of a row at once, and few rows side by
// side. So 16 rows meet all the columns before the next ones come.
constexpr int64_t STREAM_COLUMNS = 4 * TILE_SIDE;

// What is fetched ahead: the rows' next words, so many steps before they are needed.
constexpr int64_t PARTS_AHEAD = 2;

// Lines of a row that are fetched one after the other: with many columns there is time for one row after the other,
// with few of them all rows go on together.
constexpr int64_t LONG_STRETCH = 8, MANY_COLUMNS = 10 * TILE_SIDE;

// Lines of each of the next rows that are fetched meanwhile.
constexpr int64_t NEXT_LINES = 4;

// Two tiles of rows of the left operand, from some k on.
struct DenseRows {
  const char* base[2];
  int64_t stride;  // bytes from row to row
};

// The lines that a later product will read, of two tiles of rows: fetched a few at a time, as evenly as possible,
// because bursts keep the other loads waiting.
class Coming {
 public:
  Coming() = default;
  Coming(const char* base, int64_t stride, int64_t lines, int64_t stretch, int64_t steps)
      : base_(base),
        at_(base),
        stride_(stride - stretch * LINE),
        stretch_(stretch),
        left_(lines * ROWS),
        pace_((left_ + steps - 1) / steps) {}

  MOE_INLINE void fetch() {
    for (int64_t i = 0; i < pace_ && left_ > 0; ++i, --left_) {
      __builtin_prefetch(at_, 0, 2);
      at_ += LINE;
      if (++line_ < stretch_) continue;
      line_ = 0;
      at_ += stride_;
      if (++row_ < ROWS) continue;
      row_ = 0;
      at_ = base_ += stretch_ * LINE;
    }
  }

 private:
  static constexpr int64_t LINE = 64, ROWS = 2 * TILE_SIDE;
  const char *base_ = nullptr, *at_ = nullptr;
  int64_t stride_ = 0, stretch_ = 0, left_ = 0, pace_ = 0, line_ = 0, row_ = 0;
};

// Where a block takes the rows from: from memory, leaving a copy in `tiles`, or from that copy.
enum class From { memory, tiles };

// A tile's depth of one or two tiles of rows by one or two of columns. The last step stores each sum as soon as it is
// complete, while the next one is multiplied.
template <From FROM, int ROWS, int COLUMNS, bool LAST>
MOE_INLINE void dense_step(const char* low, const char* high, int64_t stride, float* tiles, const float* b,
                           int64_t panel, float* c, int64_t ldc) {
  // Columns pass the first-level cache by: it is for the rows.
  tile_stream<6>(b, TILE_ROW_BYTES);
  if constexpr (FROM == From::tiles)
    tile_load<4>(tiles, TILE_ROW_BYTES);
  else
    tile_load<4>(low, stride);
  if constexpr (COLUMNS == 2) tile_stream<7>(b + panel, TILE_ROW_BYTES);
  if constexpr (ROWS == 2 && FROM == From::tiles) tile_load<5>(tiles + TILE_WORDS, TILE_ROW_BYTES);
  if constexpr (ROWS == 2 && FROM != From::tiles) tile_load<5>(high, stride);
  tile_dot_bf16<0, 4, 6>();
  if constexpr (LAST) tile_store<0>(c, ldc * 4);
  if constexpr (COLUMNS == 2) tile_dot_bf16<1, 4, 7>();
  if constexpr (FROM == From::memory) tile_store<4>(tiles, TILE_ROW_BYTES);
  if constexpr (LAST && COLUMNS == 2) tile_store<1>(c + TILE_SIDE, ldc * 4);
  if constexpr (ROWS == 2) {
    tile_dot_bf16<2, 5, 6>();
    if constexpr (LAST) tile_store<2>(c + TILE_SIDE * ldc, ldc * 4);
    if constexpr (COLUMNS == 2) tile_dot_bf16<3, 5, 7>();
    if constexpr (FROM == From::memory) tile_store<5>(tiles + TILE_WORDS, TILE_ROW_BYTES);
    if constexpr (LAST && COLUMNS == 2) tile_store<3>(c + TILE_SIDE * ldc + TILE_SIDE, ldc * 4);
  }
}

// The same over `words` (a multiple of 16) of both.
template <From FROM, int ROWS, int COLUMNS>
inline void dense_block(const DenseRows& left, float* tiles, const float* b, int64_t panel, int64_t words, float* c,
                        int64_t ldc, bool accumulate, Coming& coming) {
  load_sums<ROWS, COLUMNS>(c, ldc, accumulate);
  const char *low = left.base[0], *high = left.base[1];
  for (const float* last = b + words * TILE_SIDE - TILE_WORDS; b < last; b += TILE_WORDS, tiles += STEP_FLOATS) {
    coming.fetch();
    dense_step<FROM, ROWS, COLUMNS, false>(low, high, left.stride, tiles, b, panel, c, ldc);
    low += TILE_ROW_BYTES;
    high += TILE_ROW_BYTES;
  }
  coming.fetch();
  dense_step<FROM, ROWS, COLUMNS, true>(low, high, left.stride, tiles, b, panel, c, ldc);
}

template <From FROM>
inline void dense_block(const DenseRows& left, int64_t rows, float* tiles, const float* b, int64_t panel,
                        int64_t columns, int64_t words, float* c, int64_t ldc, bool accumulate, Coming& coming) {
  const bool high = rows > TILE_SIDE, wide = columns > TILE_SIDE;
  if (high && wide)
    dense_block<FROM, 2, 2>(left, tiles, b, panel, words, c, ldc, accumulate, coming);
  else if (high)
    dense_block<FROM, 2, 1>(left, tiles, b, panel, words, c, ldc, accumulate, coming);
  else if (wide)
    dense_block<FROM, 1, 2>(left, tiles, b, panel, words, c, ldc, accumulate, coming);
  else
    dense_block<FROM, 1, 1>(left, tiles, b, panel, words, c, ldc, accumulate, coming);
}

// A tile's depth of one tile of rows, read where they lie, by up to four of columns, whose sums are tiles 0 to 3. The
// last step stores each sum as soon as it is complete, while the next one is multiplied.
template <int COLUMNS, bool LAST>
MOE_INLINE void stream_step(const char* low, int64_t stride, const float* b, int64_t panel, float* c, int64_t ldc) {
  tile_stream<6>(b, TILE_ROW_BYTES);
  tile_load<4>(low, stride);
  if constexpr (COLUMNS > 1) tile_stream<7>(b + panel, TILE_ROW_BYTES);
  tile_dot_bf16<0, 4, 6>();
  if constexpr (LAST) tile_store<0>(c, ldc * 4);
  if constexpr (COLUMNS > 2) tile_stream<6>(b + 2 * panel, TILE_ROW_BYTES);
  if constexpr (COLUMNS > 1) tile_dot_bf16<1, 4, 7>();
  if constexpr (LAST && COLUMNS > 1) tile_store<1>(c + TILE_SIDE, ldc * 4);
  if constexpr (COLUMNS > 3) tile_stream<7>(b + 3 * panel, TILE_ROW_BYTES);
  if constexpr (COLUMNS > 2) tile_dot_bf16<2, 4, 6>();
  if constexpr (LAST && COLUMNS > 2) tile_store<2>(c + 2 * TILE_SIDE, ldc * 4);
  if constexpr (COLUMNS > 3) tile_dot_bf16<3, 4, 7>();
  if constexpr (LAST && COLUMNS > 3) tile_store<3>(c + 3 * TILE_SIDE, ldc * 4);
}

// The same over `words` (a multiple of 16) of both.
template <int COLUMNS>
inline void stream_block(const char* low, int64_t stride, const float* b, int64_t panel, int64_t words, float* c,
                         int64_t ldc, bool accumulate) {
  if (accumulate) {
    tile_load<0>(c, ldc * 4);
    if constexpr (COLUMNS > 1) tile_load<1>(c + TILE_SIDE, ldc * 4);
    if constexpr (COLUMNS > 2) tile_load<2>(c + 2 * TILE_SIDE, ldc * 4);
    if constexpr (COLUMNS > 3) tile_load<3>(c + 3 * TILE_SIDE, ldc * 4);
  } else {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  for (const float* last = b + words * TILE_SIDE - TILE_WORDS; b < last; b += TILE_WORDS, low += TILE_ROW_BYTES)
    stream_step<COLUMNS, false>(low, stride, b, panel, c, ldc);
  stream_step<COLUMNS, true>(low, stride, b, panel, c, ldc);
}

// 16 rows and all columns, up to STREAM_COLUMNS of them.
inline void stream_rows(const char* low, int64_t stride, const float* b, int64_t panel, int64_t columns, int64_t words,
                        float* c, int64_t ldc, bool accumulate) {
  switch ((columns - 1) / TILE_SIDE) {
    case 0:
      return stream_block<1>(low, stride, b, panel, words, c, ldc, accumulate);
    case 1:
      return stream_block<2>(low, stride, b, panel, words, c, ldc, accumulate);
    case 2:
      return stream_block<3>(low, stride, b, panel, words, c, ldc, accumulate);
    default:
      return stream_block<4>(low, stride, b, panel, words, c, ldc, accumulate);
  }
}

// Up to 16 rows from `row` on as the first or the second tiles of the steps from k on, zeros after depth and below the
// last row.
inline void copy_dense_rows(float* tiles, const Operand& a, int64_t row, int64_t count, int64_t k, int64_t depth) {
  for (int64_t w = 0; 2 * w < depth; w += TILE_SIDE, tiles += STEP_FLOATS) {
    if (a.col_stride == 1) {
      const char* src = a.base + (row * a.row_stride + k + 2 * w) * 2;
      for (int64_t r = 0; r < TILE_SIDE; ++r)
        store(tiles + r * TILE_SIDE, r < count ? load_first_pairs(src + r * a.row_stride * 2, depth - 2 * w) : Vec{});
      continue;
    }
    Vec block[LANES];
    for (int64_t i = 0; i < LANES; ++i) {
      const int64_t at = 2 * (w + i);
      const char* src = a.base + (row + (k + at) * a.col_stride) * 2;
      const VecU low = at < depth ? load_first_bits(src, count) : VecU{};
      const VecU high = at + 1 < depth ? load_first_bits(src + a.col_stride * 2, count) : VecU{};
      block[i] = reinterpret_cast<Vec>(low | high << 16);
    }
    transpose(block);
    for (int64_t r = 0; r < LANES; ++r) store(tiles + r * TILE_SIDE, block[r]);
  }
}

inline void product_dense(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                          int64_t panel, int64_t columns, bool accumulate, float* tiles) {
  constexpr int64_t HEIGHT = 2 * TILE_SIDE, WIDTH = 2 * TILE_SIDE, STEP = 2 * TILE_SIDE, PART = 2 * DENSE_DEPTH;
  const int64_t row_bytes = a.row_stride * 2;
  const bool whole = a.col_stride == 1 && depth % STEP == 0;
  const int64_t parts = (depth + PART - 1) / PART, blocks = (columns + WIDTH - 1) / WIDTH;
  // What the rows from m on need some parts after k: of the same rows, of those below, or of those that come
  // afterwards.
  const auto ahead = [&](int64_t m, int64_t k) {
    const int64_t later = k / PART + PARTS_AHEAD, row = m + later / parts * HEIGHT, from = later % parts * PART;
    const char* base = row < rows ? a.base + row * row_bytes : a.next ? a.next + (row - rows) * row_bytes : nullptr;
    if (!base) return Coming();
    const int64_t lines = std::min(depth - from, PART) / STEP;
    return Coming(base + from * 2, row_bytes, lines, columns < MANY_COLUMNS ? 1 : std::min(lines, LONG_STRETCH),
                  blocks * std::min(depth - k, PART) / STEP);
  };
  Coming none;
  tile_begin();
  int64_t m = 0;
  if (whole && columns <= STREAM_COLUMNS) {
    const int64_t apart = rows_apart(row_bytes, rows);
    for (; m + TILE_SIDE * apart <= rows; m += TILE_SIDE * apart)
      for (int64_t first = m; first < m + apart; ++first)
        stream_rows(a.base + first * row_bytes, apart * row_bytes, b, panel, columns, depth / 2, c + first * ldc,
                    ldc * apart, accumulate);
    for (; m + TILE_SIDE <= rows; m += TILE_SIDE)
      stream_rows(a.base + m * row_bytes, row_bytes, b, panel, columns, depth / 2, c + m * ldc, ldc, accumulate);
    // While this task's results are worked on, memory has something to do.
    if (a.next)
      for (int64_t line = 0; line < NEXT_LINES; ++line)
        for (int64_t r = 0; r < TILE_SIDE; ++r) __builtin_prefetch(a.next + r * apart * row_bytes + line * 64, 0, 1);
  }
  for (; m < rows; m += HEIGHT) {
    const int64_t count = std::min(rows - m, HEIGHT);
    // A tile reads its rows where they are, unless they are a column of memory each, or do not fill it.
    const bool in_place = whole && count % TILE_SIDE == 0;
    const char* base = a.base + m * row_bytes;
    const auto at = [&](int64_t k) {
      return DenseRows{{base + k * 2, base + TILE_SIDE * row_bytes + k * 2}, row_bytes};
    };
    for (int64_t k = 0; k < depth; k += PART) {
      const int64_t part = std::min(depth - k, PART), words = (part + STEP - 1) / STEP * TILE_SIDE;
      const float* right = b + k / 2 * TILE_SIDE;
      float* to = c + m * ldc;
      const bool add = accumulate || k > 0;
      int64_t n = 0;
      Coming coming = in_place ? ahead(m, k) : Coming();
      if (in_place) {
        dense_block<From::memory>(at(k), count, tiles, right, panel, columns, words, to, ldc, add, coming);
        n = WIDTH;
      } else {
        for (int64_t r = 0; r < count; r += TILE_SIDE)
          copy_dense_rows(tiles + r / TILE_SIDE * TILE_WORDS, a, m + r, std::min(count - r, TILE_SIDE), k, part);
      }
      for (; n < columns; n += WIDTH)
        dense_block<From::tiles>(at(k), count, tiles, right + n / TILE_SIDE * panel, panel, columns - n, words, to + n,
                                 ldc, add, coming);
    }
  }
  tile_end();
}

inline void pack_columns_dense(float* b, int64_t panel, const Rows& rows, int64_t count, int64_t first_column,
                               int64_t columns) {
  const int64_t words = (columns + 1) / 2, filled = (words + TILE_SIDE - 1) / TILE_SIDE * TILE_SIDE;
  for (int64_t i = 0; i < count; i += LANES, b += panel) {
    const int64_t height = std::min<int64_t>(count - i, LANES);
    for (int64_t j = 0; j < filled; j += LANES) {
      Vec block[LANES];
#pragma GCC unroll 16
      for (int64_t r = 0; r < LANES; ++r)
        block[r] = r < height
                       ? row_words(rows.at(i + r, first_column + 2 * j), rows.dtype,
                                   std::min<int64_t>(columns - 2 * j, 32), rows.scale ? rows.scale + i + r : nullptr)
                       : Vec{};
      transpose(block);
#pragma GCC unroll 16
      for (int64_t w = 0; w < LANES; ++w) store(b + (j + w) * LANES, block[w]);
    }
  }
}

inline void pack_block_dense(float* b, int64_t panel, int64_t first, const float* src, int64_t ld, int64_t depth,
                             int64_t columns) {
  for (int64_t n = 0; n < columns; n += LANES, b += panel)
    for (int64_t k = 0; k < depth; k += 2)
      store(b + (first + k / 2) * LANES,
            join_pairs(load(src + k * ld + n), k + 1 < depth ? load(src + (k + 1) * ld + n) : Vec{}));
}

// Gradients of weights have a form of their own on AMX (amx_rows.h, amx_outer.h).
constexpr Form AMX_DENSE = {DType::bf16,
                            2,
                            DENSE_DEPTH,
                            1,
                            1,
                            TILE_SIDE,
                            0,
                            0,
                            DENSE_SCRATCH,
                            product_dense,
                            nullptr,
                            pack_columns_dense,
                            nullptr,
                            pack_block_dense,
                            TILE_SIDE,
                            256};

}  // namespace
}  // namespace moe
