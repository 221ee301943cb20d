// The gradient of a weight on AMX: products of columns over an expert's rows, straight to bfloat16. Where the rows are
// few, all of a sum is in registers and the result is written once.
#pragma once

#include "amx_tile_pack.h"

namespace moe {
namespace {

// Rows that are summed in one go; beyond, sums wait in float32.
constexpr int64_t OUTER_ROWS = 768;
// Bytes of packed columns, of either side.
constexpr int64_t OUTER_PACKED = int64_t{512} << 10;

// Features (rows of the result) and columns of one block.
inline int64_t outer_block_amx(int64_t count) {
  const int64_t rows = std::min(whole_pairs(std::max<int64_t>(count, 1)), OUTER_ROWS);
  const int64_t fitting = OUTER_PACKED / 2 / rows / TILE_PAIR * TILE_PAIR;
  return count > OUTER_ROWS ? std::min<int64_t>(fitting, 512) : std::min<int64_t>(fitting, 4096);
}

inline int64_t outer_scratch_amx(int64_t count) {
  const int64_t block = outer_block_amx(count), sums = count > OUTER_ROWS ? block * block : TILE_PAIR * TILE_PAIR;
  return 2 * OUTER_PACKED + sums * 4;
}

// 32 by 32 sums to out, or added to it.
template <bool ADD>
inline void put_outer(char* out, int64_t stride, const float* block, int64_t rows, int64_t width) {
  const __mmask32 mask = width >= 32 ? 0xffffffffu : (1u << width) - 1;
  for (int64_t r = 0; r < rows; ++r, block += TILE_PAIR, out += stride) {
    Vec low = load(block), high = load(block + TILE_SIDE);
    if constexpr (ADD) {
      // The line that is summed so many columns later.
      __builtin_prefetch(out + 512, 1, 3);
      const __m512i there = _mm512_maskz_loadu_epi16(mask, out);
      low += widen_bf16(reinterpret_cast<VecH>(_mm512_castsi512_si256(there)));
      high += widen_bf16(reinterpret_cast<VecH>(_mm512_extracti64x4_epi64(there, 1)));
    }
    const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low));
    _mm512_mask_storeu_epi16(out, mask, reinterpret_cast<__m512i>(both));
  }
}

inline void outer_product_amx(char* out, int64_t out_stride, const Rows& a, int64_t features, const Rows& b,
                              int64_t columns, int64_t count, bool add, char* scratch) {
  tile_begin();
  char* left = scratch;
  char* right = left + OUTER_PACKED;
  float* sums = reinterpret_cast<float*>(right + OUTER_PACKED);
  const int64_t block = outer_block_amx(count);
  for (int64_t c = 0; c < columns; c += block) {
    const int64_t wide = std::min(columns - c, block);
    for (int64_t n = 0; n < count; n += OUTER_ROWS) {
      const int64_t part = std::min(count - n, OUTER_ROWS), steps = (part + TILE_PAIR - 1) / TILE_PAIR;
      const bool first = n == 0, last = n + part == count, kept = first && last;
      const Rows a_part = a.from(n), b_part = b.from(n);
      for (int64_t j = 0; j < wide; j += TILE_PAIR)
        for (int64_t s = 0; s < steps; ++s)
          pack_right(right + (j / TILE_PAIR * steps + s) * 2 * TILE_BYTES, b_part, s * TILE_PAIR, part, c + j,
                     std::min(wide - j, TILE_PAIR));
      for (int64_t m = 0; m < features; m += TILE_PAIR) {
        char* rows = left + m / TILE_PAIR * steps * 2 * TILE_BYTES;
        const int64_t height = std::min(features - m, TILE_PAIR);
        // Packed once for all columns where all of the sum's rows fit.
        if (c == 0 || !kept)
          for (int64_t s = 0; s < steps; ++s)
            pack_left_across(rows + s * TILE_BYTES, steps * TILE_BYTES, a_part, s * TILE_PAIR, part, m, height);
        for (int64_t j = 0; j < wide; j += TILE_PAIR) {
          float* sum =
              kept ? sums : sums + (m / TILE_PAIR * (block / TILE_PAIR) + j / TILE_PAIR) * TILE_PAIR * TILE_PAIR;
          const char* words = right + j / TILE_PAIR * steps * 2 * TILE_BYTES;
          if (height > TILE_SIDE)
            multiply_tiles<2>(sum, rows, steps * TILE_BYTES, words, steps, !first);
          else
            multiply_tiles<1>(sum, rows, 0, words, steps, !first);
          if (!last) continue;
          char* to = out + m * out_stride + (c + j) * 2;
          const int64_t width = std::min(wide - j, TILE_PAIR);
          if (add)
            put_outer<true>(to, out_stride, sum, height, width);
          else
            put_outer<false>(to, out_stride, sum, height, width);
        }
      }
    }
  }
  tile_end();
}

}  // namespace
}  // namespace moe
