// Rows times a weight that they meet across its rows, dx = dy · W, on AMX: dy is the A operand, and two rows of W,
// interleaved on the way through the first-level cache, are words of B. Nothing is transposed.
#pragma once

#include "amx_tile_pack.h"
#include "panel.h"

namespace moe {
namespace {

// k that are unpacked at a time: with two tiles of columns, 16 KB.
constexpr int64_t ROWS_DEPTH = 256;
constexpr int64_t ROWS_STEPS = ROWS_DEPTH / TILE_PAIR;
constexpr int64_t UNPACKED = 2 * ROWS_STEPS * TILE_BYTES;

inline int64_t rows_scratch_amx(int64_t count, int64_t columns) {
  return whole_pairs(count) * (ROWS_DEPTH * 2 + whole_pairs(columns) * 4) + UNPACKED;
}

// `depth` rows of the weight by 32 columns, of which `width` exist; columns in the order of `interleave`.
inline void unpack_rows(char* to, const char* base, int64_t stride, int64_t depth, int64_t width, Ahead& ahead) {
  for (int64_t step = 0; step < depth; step += TILE_PAIR, to += 2 * TILE_BYTES) {
    const int64_t there = std::min(depth - step, TILE_PAIR);
    for (int64_t w = 0; w < TILE_SIDE; ++w) {
      const char* row = base + (step + 2 * w) * stride;
      ahead.fetch();
      ahead.fetch();
      const Vec first = 2 * w < there ? load_first_pairs(row, width) : Vec{};
      const Vec second = 2 * w + 1 < there ? load_first_pairs(row + stride, width) : Vec{};
      const WordPair words = interleave(first, second);
      float* at = reinterpret_cast<float*>(to + w * TILE_ROW_BYTES);
      store(at, words.low);
      store(at + TILE_BYTES / 4, words.high);
    }
  }
}

// The same of a weight (O, H) where k runs along its rows: words are there, and are transposed. Columns are in order.
inline void unpack_columns(char* to, const char* base, int64_t stride, int64_t depth, int64_t width, Ahead& ahead) {
  for (int64_t step = 0; step < depth; step += TILE_PAIR)
    for (int64_t tile = 0; tile < 2; ++tile, to += TILE_BYTES) {
      Vec block[LANES];
      for (int64_t r = 0; r < LANES; ++r) {
        const int64_t o = tile * TILE_SIDE + r;
        ahead.fetch();
        block[r] = o < width ? load_first_pairs(base + o * stride + step * 2, depth - step) : Vec{};
      }
      transpose(block);
      for (int64_t r = 0; r < LANES; ++r) store(reinterpret_cast<float*>(to + r * TILE_ROW_BYTES), block[r]);
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
                             const Operand& w, int64_t columns, const char* next, char* scratch) {
  tile_begin();
  const bool across = w.col_stride == 1 && w.row_stride != 1;
  const int64_t stride = (across ? w.row_stride : w.col_stride) * 2;
  const int64_t row_pairs = (count + TILE_PAIR - 1) / TILE_PAIR;
  char* unpacked = scratch;
  char* left = unpacked + UNPACKED;
  float* sums = reinterpret_cast<float*>(left + row_pairs * TILE_PAIR * ROWS_DEPTH * 2);
  for (int64_t k = 0; k < depth; k += ROWS_DEPTH) {
    const int64_t part = std::min(depth - k, ROWS_DEPTH), steps = (part + TILE_PAIR - 1) / TILE_PAIR;
    const bool last = k + part == depth;
    for (int64_t n = 0; n < count; n += TILE_SIDE)
      for (int64_t s = 0; s < steps; ++s)
        pack_left(left + (n / TILE_SIDE * ROWS_STEPS + s) * TILE_BYTES, a, n, count, k + s * TILE_PAIR,
                  std::min(depth - k - s * TILE_PAIR, TILE_PAIR));
    Ahead ahead;
    if (!across) {
      const char* from = last ? next : w.base + (k + ROWS_DEPTH) * stride;
      const int64_t rows = std::min(last ? depth : depth - k - ROWS_DEPTH, ROWS_DEPTH);
      if (from) ahead = Ahead(from, rows, stride, columns * 2);
    }
    for (int64_t o = 0; o < columns; o += TILE_PAIR) {
      const int64_t width = std::min(columns - o, TILE_PAIR);
      if (across) {
        const int64_t rows = std::min(columns - o - TILE_PAIR, TILE_PAIR);
        if (rows > 0) ahead = Ahead(w.base + (o + TILE_PAIR) * stride + k * 2, rows, stride, part * 2);
        unpack_columns(unpacked, w.base + o * stride + k * 2, stride, part, width, ahead);
      } else {
        unpack_rows(unpacked, w.base + k * stride + o * 2, stride, part, width, ahead);
      }
      for (int64_t n = 0; n < count; n += TILE_PAIR) {
        float* block = sums + (o / TILE_PAIR * row_pairs + n / TILE_PAIR) * TILE_PAIR * TILE_PAIR;
        const char* rows = left + n / TILE_SIDE * ROWS_STEPS * TILE_BYTES;
        if (count - n > TILE_SIDE)
          multiply_tiles<2>(block, rows, ROWS_STEPS * TILE_BYTES, unpacked, steps, k > 0);
        else
          multiply_tiles<1>(block, rows, 0, unpacked, steps, k > 0);
        if (last) put_sums(out + n * out_stride + o, out_stride, block, std::min(count - n, TILE_PAIR), width, across);
      }
    }
  }
  tile_end();
}

}  // namespace
}  // namespace moe
