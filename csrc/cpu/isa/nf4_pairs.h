// NF4 weights in bfloat16 pairs, for AVX512-BF16: the levels are looked up as bfloat16, and a block's sum is multiplied
// by the block's factor.
//
// The pairs of a block are not of neighbours. A double word of a row holds 8 values; shifted by 4, 0, 12 or 8 bits, its
// two halves end in the numbers of values (0, 4), (1, 5), (2, 6) and (3, 7). Those are the words of the packed operand:
// word 8 s + g of a block is the pair (8 g + s, 8 g + s + 4).
#pragma once

#include "pairs.h"
#include "quantized.h"

namespace moe {
namespace {

constexpr int64_t FEW_NF4_COLUMNS = 8;
constexpr int64_t NF4_WORDS = NF4_BLOCK / 2;

// The levels, rounded to bfloat16, twice: a look-up sees five bits, of which the upper is another value's.
struct Nf4Table {
  constexpr Nf4Table() {
    // To nearest: no level lies halfway between two bfloat16.
    constexpr uint16_t BITS[16] = {0xbf80, 0xbf32, 0xbf06, 0xbeca, 0xbe92, 0xbe3d, 0xbdba, 0x0000,
                                   0x3da3, 0x3e25, 0x3e7c, 0x3ead, 0x3ee2, 0x3f10, 0x3f39, 0x3f80};
    for (int i = 0; i < 32; ++i) bits[i] = BITS[i % 16];
  }
  alignas(64) uint16_t bits[32] = {};
};
constexpr Nf4Table NF4_TABLE;

MOE_INLINE __m512i nf4_table() { return _mm512_load_si512(NF4_TABLE.bits); }
MOE_INLINE Vec nf4_levels(__m512i table, __m512i numbers) {
  return reinterpret_cast<Vec>(_mm512_permutexvar_epi16(numbers, table));
}

struct Nf4Words : PairWords {
  static constexpr int64_t RUN = NF4_WORDS, SLOTS = 1;
  static constexpr bool SCALED = true;
  static constexpr int64_t SCALE_STEP = 1;

  static bool direct(const Operand&, int64_t) { return false; }
  static Left left(const Operand& a, int64_t row, int64_t k) {
    return {nullptr, 0, a.at(row, k).scale, a.scale_stride, 0};
  }
  static Ahead ahead(const Operand& a, int64_t row, int64_t rows, int64_t depth) {
    return {a.at(row, 0).base, rows, a.row_stride / 2, depth / 2};
  }
  static void copy_row(float* words, const Operand& a, int64_t row, int64_t k, int64_t count) {
    const __m512i table = nf4_table();
    const __m512i first = _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i second = _mm512_setr_epi32(12, 12, 12, 12, 12, 12, 12, 12, 8, 8, 8, 8, 8, 8, 8, 8);
    const char* at = a.at(row, k).base;
    for (int64_t i = 0; i < count; i += NF4_BLOCK, at += NF4_BLOCK / 2, words += NF4_WORDS) {
      const __m512i block = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
      store(words, nf4_levels(table, _mm512_srlv_epi32(block, first)));
      store(words + LANES, nf4_levels(table, _mm512_srlv_epi32(block, second)));
    }
  }
};

// Factors of 16 rows for up to 16 blocks, as vectors along the rows.
struct Nf4Factors {
  static constexpr int64_t BLOCKS = LANES;

  void load(const float* scale, int64_t stride, int64_t rows, int64_t blocks) {
    Vec v[LANES];
    for (int64_t r = 0; r < LANES; ++r)
      v[r] = load_first(scale + (r < rows ? r : rows - 1) * stride, blocks < BLOCKS ? blocks : BLOCKS);
    transpose(v);
    for (int j = 0; j < LANES; ++j) store(block[j], v[j]);
  }
  alignas(64) float block[BLOCKS][LANES];
};

// One or both blocks of 16 rows, whose double words are lanes of `words`; sums of both run side by side to hide
// latency.
template <int COLUMNS, int BLOCKS>
MOE_INLINE void few_nf4_blocks(Vec (&sum)[COLUMNS], const Vec* words, __m512i table, const float* right,
                               const float (*factor)[LANES], bool first) {
  constexpr int SHIFT[4] = {4, 0, 12, 8};
  Vec run[BLOCKS][COLUMNS] = {};
#pragma GCC unroll 4
  for (int s = 0; s < 4; ++s) {
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
#pragma GCC unroll 2
      for (int half = 0; half < BLOCKS; ++half) {
        const Vec left =
            nf4_levels(table, reinterpret_cast<__m512i>(reinterpret_cast<VecU>(words[8 * half + g]) >> SHIFT[s]));
#pragma GCC unroll 8
        for (int n = 0; n < COLUMNS; ++n)
          run[half][n] = dot_pair(
              left, splat_word(right + half * NF4_WORDS * COLUMNS + few_word(COLUMNS, 8 * s + g, n)), run[half][n]);
      }
    }
  }
#pragma GCC unroll 2
  for (int half = 0; half < BLOCKS; ++half) {
    const Vec by = load(factor[half]);
#pragma GCC unroll 8
    for (int n = 0; n < COLUMNS; ++n) sum[n] = first && half == 0 ? by * run[half][n] : fma(by, run[half][n], sum[n]);
  }
}

// 16 rows by two blocks at a time, transposed in registers: a lane is a row.
template <int COLUMNS>
inline void few_nf4(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                    bool accumulate) {
  const __m512i table = nf4_table();
  const int64_t blocks = depth / NF4_BLOCK, bytes = a.row_stride / 2;
  Nf4Factors factors;
  for (int64_t m = 0; m < rows; m += LANES) {
    const int64_t count = rows - m < LANES ? rows - m : LANES;
    const char* row[LANES];
    for (int64_t r = 0; r < LANES; ++r) row[r] = a.base + (m + (r < count ? r : count - 1)) * bytes;
    const float* scale = a.scale + m * a.scale_stride;
    Ahead ahead = ahead_of<Nf4Words>(a, m + LANES, rows, LANES, depth);
    Vec sum[COLUMNS];
    get_columns(sum, c + m * ldc, ldc, count, accumulate);
    for (int64_t block = 0; block < blocks; block += 2) {
      if (block % Nf4Factors::BLOCKS == 0) factors.load(scale + block, a.scale_stride, count, blocks - block);
      const float (*factor)[LANES] = factors.block + block % Nf4Factors::BLOCKS;
      const float* right = b + block * NF4_WORDS * COLUMNS;
      const bool first = !accumulate && block == 0;
      Vec words[LANES];
      if (block + 1 < blocks) {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) {
          ahead.fetch();
          words[r] = load(reinterpret_cast<const float*>(row[r] + block * (NF4_BLOCK / 2)));
        }
        transpose(words);
        if constexpr (COLUMNS <= 4) {
          few_nf4_blocks<COLUMNS, 2>(sum, words, table, right, factor, first);
        } else {
          few_nf4_blocks<COLUMNS, 1>(sum, words, table, right, factor, first);
          few_nf4_blocks<COLUMNS, 1>(sum, words + 8, table, right + NF4_WORDS * COLUMNS, factor + 1, false);
        }
      } else {
        for (int r = 0; r < LANES; ++r)
          words[r] = load_first(reinterpret_cast<const float*>(row[r] + block * (NF4_BLOCK / 2)), 8);
        transpose(words);
        few_nf4_blocks<COLUMNS, 1>(sum, words, table, right, factor, first);
      }
    }
    put_columns(c + m * ldc, ldc, sum, count);
  }
}

template <int COLUMNS>
inline void few_nf4_columns(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                            int64_t columns, bool accumulate) {
  if constexpr (COLUMNS > 1) {
    if (columns < COLUMNS) {
      few_nf4_columns<COLUMNS - 1>(c, ldc, a, rows, depth, b, columns, accumulate);
      return;
    }
  }
  few_nf4<COLUMNS>(c, ldc, a, rows, depth, b, accumulate);
}

inline void product_nf4(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                        int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  if (columns <= FEW_NF4_COLUMNS)
    few_nf4_columns<FEW_NF4_COLUMNS>(c, ldc, a, rows, depth, b, columns, accumulate);
  else
    panel_by_rows<Nf4Words>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
}

// The words of a block from its values in order: where = 0 for words 0 to 15, 1 for the rest.
MOE_INLINE Vec nf4_order(Vec low, Vec high, int where) {
  // Value 8 g + s of the block is element 8 g + s of low (g < 4) or high.
  alignas(64) static constexpr auto ORDER = [] {
    std::array<std::array<uint16_t, 32>, 2> order{};
    for (int s = 0; s < 4; ++s)
      for (int g = 0; g < 8; ++g)
        for (int half = 0; half < 2; ++half)
          order[s / 2][2 * (8 * (s % 2) + g) + half] = static_cast<uint16_t>(8 * g + s + 4 * half);
    return order;
  }();
  const __m512i index = _mm512_loadu_si512(ORDER[where].data());
  return reinterpret_cast<Vec>(
      _mm512_permutex2var_epi16(reinterpret_cast<__m512i>(low), index, reinterpret_cast<__m512i>(high)));
}

template <int64_t FEW>
inline void pack_columns_nf4(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column,
                             int64_t columns) {
  const auto words = [&](int64_t i, int64_t j, int where) {
    const float* scale = rows.scale ? rows.scale + i : nullptr;
    return nf4_order(row_words(rows.at(i, first_column + j), rows.dtype, 32, scale),
                     row_words(rows.at(i, first_column + j + 32), rows.dtype, 32, scale), where);
  };
  for (int64_t j = 0; j < columns; j += NF4_BLOCK) {
    for (int where = 0; where < 2; ++where) {
      const int64_t w = j / 2 + where * LANES;
      if (count <= FEW) {
        for (int64_t i = 0; i < count; ++i) store(b + few_word(count, w, i), words(i, j, where));
        continue;
      }
      for (int64_t i = 0; i < ldb; i += LANES) {
        Vec block[LANES];
        for (int64_t r = 0; r < LANES; ++r) block[r] = i + r < count ? words(i + r, j, where) : Vec{};
        transpose(block);
        for (int64_t r = 0; r < LANES; ++r) store(b + (w + r) * ldb + i, block[r]);
      }
    }
  }
}

template <int64_t FEW>
inline void pack_block_nf4(float* b, int64_t ldb, int64_t first, const float* src, int64_t ld, int64_t depth,
                           int64_t columns) {
  for (int64_t k = 0; k < depth; k += NF4_BLOCK)
    for (int64_t w = 0; w < NF4_WORDS; ++w) {
      const float* low = src + (k + 8 * (w % 8) + w / 8) * ld;
      for (int64_t n = 0; n < columns; n += LANES) {
        const int64_t width = std::min<int64_t>(ld - n, LANES);
        const Vec word = join_pairs(load_first(low + n, width), load_first(low + 4 * ld + n, width));
        const int64_t at = first + k / 2 + w;
        if (columns > FEW) {
          store(b + at * ldb + n, word);
          continue;
        }
        float lane[LANES];
        store(lane, word);
        for (int64_t i = 0; i < width; ++i) std::memcpy(b + few_word(columns, at, n + i), lane + i, sizeof(float));
      }
    }
}

constexpr Form NF4 = {DType::bf16,
                      Nf4Words::UNIT,
                      Nf4Words::DEPTH,
                      NF4_BLOCK,
                      1,
                      TILE_ROWS,
                      FEW_NF4_COLUMNS,
                      4,
                      PANEL_SCRATCH<Nf4Words>,
                      product_nf4,
                      nullptr,
                      pack_columns_nf4<FEW_NF4_COLUMNS>,
                      nullptr,
                      pack_block_nf4<FEW_NF4_COLUMNS>};

}  // namespace
}  // namespace moe
