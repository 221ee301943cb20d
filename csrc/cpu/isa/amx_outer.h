// The gradient of a weight on AMX: products of columns over an expert's rows, straight to bfloat16. Where the rows are
// few, all of a sum is in registers and the result is written once.
#pragma once

#include "amx_tile_pack.h"

namespace moe {
namespace {

// Rows that are summed in one go; beyond, sums wait in float32.
constexpr int64_t OUTER_ROWS = 768;
// Bytes of packed features and of packed columns. The columns are read again for every 32 features, beside results
// that pass through the same cache.
constexpr int64_t OUTER_LEFT = int64_t{768} << 10, OUTER_RIGHT = int64_t{512} << 10;

inline int64_t outer_fitting(int64_t bytes, int64_t count) {
  const int64_t rows = std::min(whole_pairs(std::max<int64_t>(count, 1)), OUTER_ROWS);
  return bytes / 2 / rows / TILE_PAIR * TILE_PAIR;
}
inline int64_t outer_block_amx(int64_t count) { return outer_fitting(OUTER_LEFT, count); }
inline int64_t outer_columns(int64_t count) { return outer_fitting(OUTER_RIGHT, count); }

inline int64_t outer_scratch_amx(int64_t count) {
  const int64_t kept = (count > OUTER_ROWS ? outer_block_amx(count) : TILE_PAIR) * outer_columns(count);
  return OUTER_LEFT + OUTER_RIGHT + kept * 4;
}

// How results meet the memory: as values of the cache, past the caches, or added to what is there.
enum class Put { stored, streamed, added };

// 32 by 32 sums to out.
template <Put PUT, bool WHOLE>
inline void put_outer(char* out, int64_t stride, const float* block, int64_t rows, int64_t width) {
  const __mmask32 mask = WHOLE ? 0xffffffffu : (1u << width) - 1;
#pragma GCC unroll 4
  for (int64_t r = 0; r < rows; ++r, block += TILE_PAIR, out += stride) {
    Vec low = load(block), high = load(block + TILE_SIDE);
    if constexpr (PUT == Put::added) {
      const __m512i there = WHOLE ? _mm512_loadu_si512(out) : _mm512_maskz_loadu_epi16(mask, out);
      low += widen_bf16(reinterpret_cast<VecH>(_mm512_castsi512_si256(there)));
      high += widen_bf16(reinterpret_cast<VecH>(_mm512_extracti64x4_epi64(there, 1)));
    }
    const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low));
    if constexpr (WHOLE && PUT == Put::streamed)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(out), reinterpret_cast<__m512i>(both));
    else if constexpr (WHOLE)
      _mm512_storeu_si512(out, reinterpret_cast<__m512i>(both));
    else
      _mm512_mask_storeu_epi16(out, mask, reinterpret_cast<__m512i>(both));
  }
}

inline void put_block(char* out, int64_t stride, const float* block, int64_t rows, int64_t width, Put put) {
  const bool whole = width >= TILE_PAIR;
  if (put == Put::added)
    whole ? put_outer<Put::added, true>(out, stride, block, rows, width)
          : put_outer<Put::added, false>(out, stride, block, rows, width);
  else if (put == Put::streamed && whole)
    put_outer<Put::streamed, true>(out, stride, block, rows, width);
  else
    whole ? put_outer<Put::stored, true>(out, stride, block, rows, width)
          : put_outer<Put::stored, false>(out, stride, block, rows, width);
}

inline void outer_product_amx(char* out, int64_t out_stride, const Rows& a, int64_t features, const Rows& b,
                              int64_t columns, int64_t count, bool add, bool stream, char* scratch) {
  constexpr int64_t BLOCK = TILE_PAIR * TILE_PAIR, PAGE = 4096;
  // Whole lines only.
  const bool lines = reinterpret_cast<uintptr_t>(out) % 64 == 0 && out_stride % 64 == 0;
  const Put put = add ? Put::added : stream && lines ? Put::streamed : Put::stored;
  tile_begin();
  char* left = scratch;
  char* right = left + OUTER_LEFT;
  float* sums = reinterpret_cast<float*>(right + OUTER_RIGHT);
  const int64_t fitting = outer_columns(count), pieces = (columns + fitting - 1) / fitting;
  const int64_t block = whole_pairs((columns + pieces - 1) / pieces);
  // 32 rows side by side are as many streams to memory. Where they share pages and what is there must be read, it pays
  // to finish the rows one by one, unless the products are few (E=128, O=2048, H=768, two AMX cores: 62 ms in place of
  // 79 with 128 rows an expert, 39 in place of 26 with 32).
  const bool side_by_side = !add || count <= 64 || out_stride % PAGE == 0;
  for (int64_t c = 0; c < columns; c += block) {
    const int64_t wide = std::min(columns - c, block);
    for (int64_t n = 0; n < count; n += OUTER_ROWS) {
      const int64_t part = std::min(count - n, OUTER_ROWS), steps = (part + TILE_PAIR - 1) / TILE_PAIR;
      const bool first = n == 0, last = n + part == count, kept = first && last;
      const Rows a_part = a.from(n), b_part = b.from(n);
      // Along the rows, all of their pages at once: down one column after the other would take three times as long.
      for (int64_t s = 0; s < steps; ++s)
        for (int64_t j = 0; j < wide; j += TILE_PAIR)
          pack_right(right + (j / TILE_PAIR * steps + s) * 2 * TILE_BYTES, b_part, s * TILE_PAIR, part, c + j,
                     std::min(wide - j, TILE_PAIR));
      // Packed once for all columns where all of the sum's rows fit.
      if (c == 0 || !kept)
        for (int64_t s = 0; s < steps; ++s)
          for (int64_t m = 0; m < features; m += TILE_PAIR)
            pack_left_across(left + (m / TILE_PAIR * 2 * steps + s) * TILE_BYTES, steps * TILE_BYTES, a_part,
                             s * TILE_PAIR, part, m, std::min(features - m, TILE_PAIR));
      for (int64_t m = 0; m < features; m += TILE_PAIR) {
        const char* rows = left + m / TILE_PAIR * steps * 2 * TILE_BYTES;
        const int64_t height = std::min(features - m, TILE_PAIR);
        char* to = out + m * out_stride + c * 2;
        float* stripe = kept ? sums : sums + m * block;
        for (int64_t j = 0; j < wide; j += TILE_PAIR) {
          float* sum = kept && side_by_side ? sums : stripe + j / TILE_PAIR * BLOCK;
          const char* words = right + j / TILE_PAIR * steps * 2 * TILE_BYTES;
          if (height > TILE_SIDE)
            multiply_tiles<2, Streamed::right>(sum, rows, steps * TILE_BYTES, words, steps, !first);
          else
            multiply_tiles<1, Streamed::right>(sum, rows, 0, words, steps, !first);
          if (last && side_by_side) put_block(to + j * 2, out_stride, sum, height, wide - j, put);
        }
        if (!last || side_by_side) continue;
        for (int64_t r = 0; r < height; ++r)
          for (int64_t j = 0; j < wide; j += TILE_PAIR)
            put_block(to + r * out_stride + j * 2, out_stride, stripe + j / TILE_PAIR * BLOCK + r * TILE_PAIR, 1,
                      wide - j, put);
      }
    }
  }
  tile_end();
  if (put == Put::streamed) _mm_sfence();
}

}  // namespace
}  // namespace moe
