// Rows times a weight that they meet across its rows, dx = dy · W, on AMX: dy is the A operand, and two rows of W,
// interleaved on the way through the cache, are words of B. Nothing is transposed.
#pragma once

#include "amx_tile_pack.h"

namespace moe {
namespace {

// Of the 2 MiB of second-level cache: the sums of all rows, a block of the weight as tiles and as it lies, and some
// rows. A block is so deep that sums come and go rarely, while 32 of its columns stay in the first-level cache.
constexpr int64_t ROWS_DEPTH = 256, ROWS_BYTES = int64_t{1728} << 10;
// Rows that are packed at a time.
constexpr int64_t LEFT_ROWS = 128;

// Columns of a task with `count` rows.
inline int64_t rows_columns_amx(int64_t count) {
  const int64_t left = LEFT_ROWS * ROWS_DEPTH * 2, column = whole_pairs(count) * 4 + 2 * ROWS_DEPTH * 2;
  return std::max((ROWS_BYTES - left) / column / TILE_PAIR * TILE_PAIR, TILE_PAIR);
}

// What a task keeps in its scratch.
struct RowsScratch {
  RowsScratch(char* scratch, int64_t count, int64_t columns)
      : row_pairs(whole_pairs(count) / TILE_PAIR),
        left(scratch),
        right(left + LEFT_ROWS * ROWS_DEPTH * 2),
        sums(reinterpret_cast<float*>(right + whole_pairs(columns) * ROWS_DEPTH * 2)) {}
  static int64_t bytes(int64_t count, int64_t columns) {
    return LEFT_ROWS * ROWS_DEPTH * 2 + whole_pairs(columns) * (ROWS_DEPTH * 2 + whole_pairs(count) * 4);
  }
  float* block(int64_t column, int64_t row) const {
    return sums + (column / TILE_PAIR * row_pairs + row / TILE_PAIR) * TILE_PAIR * TILE_PAIR;
  }

  int64_t row_pairs;
  char *left, *right;
  float* sums;  // [32 columns][32 rows] blocks of 32 by 32
};
inline int64_t rows_scratch_amx(int64_t count, int64_t columns) { return RowsScratch::bytes(count, columns); }

// `count` rows by `depth` k from `column` on, as tiles [16 rows][32 k], one row after the other.
inline void pack_rows_left(char* to, const Rows& rows, int64_t first, int64_t count, int64_t end, int64_t column,
                           int64_t depth) {
  constexpr int64_t AHEAD = 4;
  const int64_t steps = (depth + TILE_PAIR - 1) / TILE_PAIR;
  for (int64_t r = 0; r < whole_pairs(count); ++r) {
    char* at = to + r / TILE_SIDE * steps * TILE_BYTES + r % TILE_SIDE * TILE_ROW_BYTES;
    const char* coming = first + r + AHEAD < end ? rows.at(first + r + AHEAD, column) : nullptr;
    for (int64_t s = 0; s < steps; ++s) {
      if (coming) __builtin_prefetch(coming + s * TILE_ROW_BYTES);
      store(reinterpret_cast<float*>(at + s * TILE_BYTES),
            line_of(rows, first + r, end, column + s * TILE_PAIR, depth - s * TILE_PAIR));
    }
  }
}

// `depth` rows of the weight by all columns, in the order of their addresses. The hardware reads ahead within a row;
// only where rows begin does it have to be told. Tiles [32 columns][32 k][2], their columns in the order of
// `interleave`.
inline void unpack_rows(char* to, const char* base, int64_t stride, int64_t depth, int64_t columns) {
  const int64_t steps = (depth + TILE_PAIR - 1) / TILE_PAIR;
  for (int64_t k = 0; k < steps * TILE_PAIR; k += 2) {
    const char* row = base + k * stride;
    for (int64_t line = 0; line < 4 && k + 3 < depth; ++line) {
      __builtin_prefetch(row + 2 * stride + line * TILE_ROW_BYTES);
      __builtin_prefetch(row + 3 * stride + line * TILE_ROW_BYTES);
    }
    char* at = to + (k / TILE_PAIR * 2 * TILE_SIDE + k % TILE_PAIR / 2) * TILE_ROW_BYTES;
    for (int64_t o = 0; o < columns; o += TILE_PAIR, at += steps * 2 * TILE_BYTES) {
      const int64_t width = columns - o;
      const Vec first = k < depth ? load_first_pairs(row + o * 2, width) : Vec{};
      const Vec second = k + 1 < depth ? load_first_pairs(row + stride + o * 2, width) : Vec{};
      const WordPair words = interleave(first, second);
      store(reinterpret_cast<float*>(at), words.low);
      store(reinterpret_cast<float*>(at + TILE_BYTES), words.high);
    }
  }
}

// The same of a weight (O, H) where k runs along its rows: words are there, and are transposed. Columns are in order.
inline void unpack_columns(char* to, const char* base, int64_t stride, int64_t depth, int64_t columns) {
  const int64_t steps = (depth + TILE_PAIR - 1) / TILE_PAIR;
  for (int64_t o = 0; o < columns; o += TILE_SIDE) {
    char* tiles = to + (o / TILE_PAIR * steps * 2 + o / TILE_SIDE % 2) * TILE_BYTES;
    for (int64_t s = 0; s < steps; ++s) {
      Vec block[LANES];
      for (int64_t r = 0; r < LANES; ++r) {
        const char* line = base + (o + r) * stride + s * TILE_ROW_BYTES;
        block[r] = o + r < columns ? load_first_pairs(line, depth - s * TILE_PAIR) : Vec{};
      }
      transpose(block);
      for (int64_t r = 0; r < LANES; ++r)
        store(reinterpret_cast<float*>(tiles + s * 2 * TILE_BYTES + r * TILE_ROW_BYTES), block[r]);
    }
  }
}

inline void rows_product_amx(const Rows& a, int64_t count, int64_t depth, const Operand& w, int64_t columns,
                             char* memory) {
  const RowsScratch scratch(memory, count, columns);
  if (depth == 0) std::memset(scratch.sums, 0, static_cast<size_t>(whole_pairs(count) * whole_pairs(columns)) * 4);
  tile_begin();
  const bool across = w.col_stride == 1 && w.row_stride != 1;
  const int64_t stride = (across ? w.row_stride : w.col_stride) * 2;
  for (int64_t k = 0; k < depth; k += ROWS_DEPTH) {
    const int64_t part = std::min(depth - k, ROWS_DEPTH), steps = (part + TILE_PAIR - 1) / TILE_PAIR;
    if (across)
      unpack_columns(scratch.right, w.base + k * 2, stride, part, columns);
    else
      unpack_rows(scratch.right, w.base + k * stride, stride, part, columns);
    for (int64_t first = 0; first < count; first += LEFT_ROWS) {
      const int64_t end = std::min(count, first + LEFT_ROWS);
      pack_rows_left(scratch.left, a, first, end - first, count, k, part);
      for (int64_t o = 0; o < columns; o += TILE_PAIR) {
        const char* right = scratch.right + o / TILE_PAIR * steps * 2 * TILE_BYTES;
        for (int64_t n = first; n < end; n += TILE_PAIR) {
          const char* rows = scratch.left + (n - first) / TILE_SIDE * steps * TILE_BYTES;
          if (count - n > TILE_SIDE)
            multiply_tiles<2, Streamed::left>(scratch.block(o, n), rows, steps * TILE_BYTES, right, steps, k > 0);
          else
            multiply_tiles<1, Streamed::left>(scratch.block(o, n), rows, 0, right, steps, k > 0);
        }
      }
    }
  }
  tile_end();
}

// 32 sums of a row in the order of their columns.
struct SumLine {
  Vec low, high;
};
MOE_INLINE SumLine sum_line(const float* block, bool in_order) {
  const Vec low = load(block), high = load(block + TILE_SIDE);
  return in_order ? SumLine{low, high} : SumLine{join_lower(low, high), join_upper(low, high)};
}

inline void rows_results_amx(char* out, DType dtype, int64_t out_stride, int64_t first, int64_t rows, int64_t count,
                             const Operand& w, int64_t columns, char* memory) {
  const RowsScratch scratch(memory, count, columns);
  const bool in_order = w.col_stride == 1 && w.row_stride != 1;
  for (int64_t n = first; n < first + rows; ++n, out += out_stride) {
    for (int64_t o = 0; o < columns; o += TILE_PAIR) {
      const SumLine line = sum_line(scratch.block(o, n) + n % TILE_PAIR * TILE_PAIR, in_order);
      const int64_t width = std::min(columns - o, TILE_PAIR);
      if (dtype == DType::f32) {
        float* to = reinterpret_cast<float*>(out) + o;
        store_first(to, line.low, std::min(width, TILE_SIDE));
        store_first(to + TILE_SIDE, line.high, std::max<int64_t>(width - TILE_SIDE, 0));
        continue;
      }
      const __m512i both = reinterpret_cast<__m512i>(
          _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(line.high), reinterpret_cast<__m512>(line.low)));
      char* to = out + o * 2;
      // Past the caches: nobody reads it soon.
      if (width == TILE_PAIR && reinterpret_cast<uintptr_t>(to) % 64 == 0)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to), both);
      else
        _mm512_mask_storeu_epi16(to, width < TILE_PAIR ? (1u << width) - 1 : 0xffffffffu, both);
    }
  }
  _mm_sfence();
}

}  // namespace
}  // namespace moe
