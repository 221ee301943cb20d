// NF4 weights on AMX.
#pragma once

#include "amx_pairs.h"
#include "nf4_pairs.h"

namespace moe {
namespace {

// NF4 by its values, each rounded to bfloat16 as bitsandbytes does: the levels times a block's factor are a table
// of 16.
struct AmxNf4 {
  static bool direct(const Operand&, int64_t) { return false; }
  static const char* row(const Operand& a, int64_t, int64_t) { return a.base; }
  static int64_t row_bytes(const Operand&) { return 0; }
  static Ahead ahead(const Operand& a, int64_t row, int64_t rows, int64_t depth) {
    return Nf4Words::ahead(a, row, rows, depth);
  }

  static void copy(float* words, const Operand& a, int64_t row, int64_t count, int64_t k, int64_t depth) {
    const __m512i first = _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i second = _mm512_setr_epi32(12, 12, 12, 12, 12, 12, 12, 12, 8, 8, 8, 8, 8, 8, 8, 8);
    const __m512 levels = _mm512_loadu_ps(NF4_LEVELS);
    for (int64_t r = 0; r < TILE_SIDE; ++r) {
      float* to = words + r * AMX_PITCH;
      if (r >= count) {
        std::memset(to, 0, static_cast<size_t>(depth / 2) * sizeof(float));
        continue;
      }
      const Operand part = a.at(row + r, k);
      for (int64_t block = 0; block < depth / NF4_BLOCK; ++block, to += NF4_WORDS) {
        const __m256i values =
            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_mul_ps(levels, _mm512_set1_ps(part.scale[block]))));
        const __m512i table = _mm512_broadcast_i64x4(values);
        const __m512i codes = _mm512_broadcast_i64x4(
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part.base + block * (NF4_BLOCK / 2))));
        store(to, nf4_levels(table, _mm512_srlv_epi32(codes, first)));
        store(to + LANES, nf4_levels(table, _mm512_srlv_epi32(codes, second)));
      }
    }
  }
};

constexpr Form AMX_NF4 = {DType::bf16,
                          PairWords::UNIT,
                          AMX_DEPTH,
                          NF4_BLOCK,
                          1,
                          TILE_SIDE,
                          0,
                          0,
                          2 * TILE_SIDE * AMX_PITCH,
                          product_amx<AmxNf4>,
                          nullptr,
                          pack_columns_nf4<0>,
                          nullptr,
                          pack_block_nf4<0>};

}  // namespace
}  // namespace moe
