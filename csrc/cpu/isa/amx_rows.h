// Rows times a weight that they meet across its rows, dx = dy · W, on AMX: dy is the A operand, and two rows of W,
// interleaved on the way through the cache, are words of B. Nothing is transposed.
#pragma once

#include "amx_tile_pack.h"

namespace moe {
namespace {

// k that are worked on at a time, and bytes of a weight that are unpacked for them.
constexpr int64_t ROWS_DEPTH = 256;
constexpr int64_t UNPACKED = int64_t{512} << 10;

inline int64_t rows_depth(int64_t columns) {
  const int64_t fitting = UNPACKED / 2 / whole_pairs(columns) / TILE_PAIR * TILE_PAIR;
  return std::max(std::min(fitting, ROWS_DEPTH), TILE_PAIR);
}

inline int64_t rows_scratch_amx(int64_t count, int64_t columns) {
  const int64_t wide = whole_pairs(columns);
  return whole_pairs(count) * (ROWS_DEPTH * 2 + wide * 4) + std::max(UNPACKED, wide * TILE_PAIR * 2);
}

// `depth` rows of the weight by all columns, in the order of their addresses: memory is read as fast as in a plain
// loop. Tiles [32 columns][32 k][2], their columns in the order of `interleave`.
inline void unpack_rows(char* to, const char* base, int64_t stride, int64_t depth, int64_t columns) {
  const int64_t steps = (depth + TILE_PAIR - 1) / TILE_PAIR;
  for (int64_t k = 0; k < steps * TILE_PAIR; k += 2) {
    const char* row = base + k * stride;
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

inline void put_sums(float* out, int64_t stride, const float* block, int64_t rows, int64_t width, bool in_order) {
  const int64_t first = std::min(width, TILE_SIDE), rest = width - first;
  for (int64_t r = 0; r < rows; ++r, block += TILE_PAIR, out += stride) {
    const Vec low = load(block), high = load(block + TILE_SIDE);
    store_first(out, in_order ? low : join_lower(low, high), first);
    store_first(out + TILE_SIDE, in_order ? high : join_upper(low, high), rest);
  }
}

inline void rows_product_amx(float* out, int64_t out_stride, const Rows& a, int64_t count, int64_t depth,
                             const Operand& w, int64_t columns, char* scratch) {
  tile_begin();
  const bool across = w.col_stride == 1 && w.row_stride != 1;
  const int64_t stride = (across ? w.row_stride : w.col_stride) * 2;
  const int64_t row_pairs = (count + TILE_PAIR - 1) / TILE_PAIR, at_once = rows_depth(columns);
  char* left = scratch;
  float* sums = reinterpret_cast<float*>(left + row_pairs * TILE_PAIR * ROWS_DEPTH * 2);
  char* unpacked = reinterpret_cast<char*>(sums + row_pairs * TILE_PAIR * whole_pairs(columns));
  for (int64_t k = 0; k < depth; k += at_once) {
    const int64_t part = std::min(depth - k, at_once), steps = (part + TILE_PAIR - 1) / TILE_PAIR;
    const bool last = k + part == depth;
    for (int64_t n = 0; n < count; n += TILE_SIDE)
      for (int64_t s = 0; s < steps; ++s)
        pack_left(left + (n / TILE_SIDE * steps + s) * TILE_BYTES, a, n, count, k + s * TILE_PAIR,
                  std::min(part - s * TILE_PAIR, TILE_PAIR));
    if (across)
      unpack_columns(unpacked, w.base + k * 2, stride, part, columns);
    else
      unpack_rows(unpacked, w.base + k * stride, stride, part, columns);
    for (int64_t o = 0; o < columns; o += TILE_PAIR) {
      const char* right = unpacked + o / TILE_PAIR * steps * 2 * TILE_BYTES;
      for (int64_t n = 0; n < count; n += TILE_PAIR) {
        float* block = sums + (o / TILE_PAIR * row_pairs + n / TILE_PAIR) * TILE_PAIR * TILE_PAIR;
        const char* rows = left + n / TILE_SIDE * steps * TILE_BYTES;
        if (count - n > TILE_SIDE)
          multiply_tiles<2>(block, rows, steps * TILE_BYTES, right, steps, k > 0);
        else
          multiply_tiles<1>(block, rows, 0, right, steps, k > 0);
        if (last)
          put_sums(out + n * out_stride + o, out_stride, block, std::min(count - n, TILE_PAIR),
                   std::min(columns - o, TILE_PAIR), across);
      }
    }
  }
  tile_end();
}

}  // namespace
}  // namespace moe
