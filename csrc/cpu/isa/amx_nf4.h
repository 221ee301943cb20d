// NF4 weights on AMX: values rounded to bfloat16, as bitsandbytes rounds them, become tiles in the first-level cache.
// The packed operand is that of nf4_pairs.h. One order at every size: a tile's 32 k are one product, products are added
// in order of k.
#pragma once

#include <algorithm>

#include "amx_tile.h"
#include "amx_words.h"
#include "nf4_pairs.h"

namespace moe {
namespace {

constexpr int64_t NF4_TILE = TILE_SIDE * TILE_SIDE;  // words
// Values of a row in a cache line: as many of 16 rows are unpacked at a time.
constexpr int64_t NF4_LINE = 2 * NF4_BLOCK;
// Up to so many tiles of columns are summed in one go.
constexpr int64_t AMX_NF4_NARROW = 4;
// k that are unpacked at a time for more columns: 32 rows of them stay in the first-level cache.
constexpr int64_t AMX_NF4_SPAN = 512;

// The 64 values of a block as 16 words each of two tiles, by a table of 16 values, twice.
MOE_INLINE void nf4_look_up(float* tiles, const char* codes, __m512i table) {
  const __m512i shift_first = _mm512_setr_epi32(4, 4, 4, 4, 4, 4, 4, 4, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m512i shift_second = _mm512_setr_epi32(12, 12, 12, 12, 12, 12, 12, 12, 8, 8, 8, 8, 8, 8, 8, 8);
  const __m512i block = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
  store(tiles, nf4_levels(table, _mm512_srlv_epi32(block, shift_first)));
  store(tiles + NF4_TILE, nf4_levels(table, _mm512_srlv_epi32(block, shift_second)));
}

// A block each of two rows. The table is the levels times the block's factor: both are rounded by one instruction,
// which takes as long for one.
MOE_INLINE void nf4_two_rows(float* tiles, const char* codes, int64_t row_bytes, const float* scale,
                             int64_t scale_stride, __m512 levels) {
  const __m512 first = _mm512_mul_ps(levels, _mm512_set1_ps(*scale));
  const __m512 second = _mm512_mul_ps(levels, _mm512_set1_ps(scale[scale_stride]));
  const __m512i tables = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  nf4_look_up(tiles, codes, _mm512_shuffle_i64x2(tables, tables, 0x44));
  nf4_look_up(tiles + TILE_SIDE, codes + row_bytes, _mm512_shuffle_i64x2(tables, tables, 0xee));
}

// A block each of up to 16 rows as two tiles; what rows that do not exist have there is left.
MOE_INLINE void nf4_tiles(float* tiles, const char* codes, int64_t row_bytes, const float* scale, int64_t scale_stride,
                          int64_t rows) {
  const __m512 levels = _mm512_loadu_ps(NF4_LEVELS);
  if (rows == TILE_SIDE) {
    // Four at a time: for more the compiler keeps an address for each row, and not in registers.
#pragma GCC unroll 2
    for (int64_t r = 0; r < TILE_SIDE; r += 2) {
      nf4_two_rows(tiles + r * TILE_SIDE, codes, row_bytes, scale, scale_stride, levels);
      codes += 2 * row_bytes;
      scale += 2 * scale_stride;
    }
    return;
  }
#pragma GCC unroll 1
  for (int64_t r = 0; r < rows; ++r) {
    const __m256i values =
        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_mul_ps(levels, _mm512_set1_ps(scale[r * scale_stride]))));
    nf4_look_up(tiles + r * TILE_SIDE, codes + r * row_bytes, _mm512_broadcast_i64x4(values));
  }
}

// Products of a block of 16 rows with COLUMNS tiles on the right, added to tiles 0 to COLUMNS - 1.
template <int COLUMNS>
MOE_INLINE void amx_nf4_dots(const float* left, const float* right, int64_t ldb) {
#pragma GCC unroll 2
  for (int t = 0; t < 2; ++t, left += NF4_TILE, right += TILE_SIDE * ldb) {
    tile_load<4>(left, TILE_ROW_BYTES);
    tile_load<6>(right, ldb * 4);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (COLUMNS > 1) {
      tile_load<7>(right + TILE_SIDE, ldb * 4);
      tile_dot_bf16<1, 4, 7>();
    }
    if constexpr (COLUMNS > 2) {
      tile_load<6>(right + 2 * TILE_SIDE, ldb * 4);
      tile_dot_bf16<2, 4, 6>();
    }
    if constexpr (COLUMNS > 3) {
      tile_load<7>(right + 3 * TILE_SIDE, ldb * 4);
      tile_dot_bf16<3, 4, 7>();
    }
  }
}

// The rows of a tile, `stride` bytes apart, and what to fetch meanwhile: codes from where the next tile's begin, and a
// line of the next group's factors with each block.
struct Nf4Rows {
  const char* codes;
  int64_t stride;
  const float* scale;
  int64_t scale_stride;
  int64_t count;
  const char* next;
  const char* next_scales;
};

// 16 rows by all columns: a block of each row is unpacked while the tiles of the one before are multiplied. Both fit
// into 4 KiB, so that no load waits for a store that has the same last 12 bits. Lines are fetched AHEAD in each row, a
// few with each block: in one burst they would keep everything else from the second-level cache.
template <int COLUMNS>
inline void amx_nf4_narrow(float* c, int64_t ldc, const Nf4Rows& rows, int64_t blocks, const float* b, int64_t ldb,
                           bool accumulate) {
  constexpr int64_t AHEAD = 4;
  alignas(4096) float tiles[2][2 * NF4_TILE];
  if (rows.count < TILE_SIDE) std::memset(tiles, 0, sizeof tiles);
  const int64_t lines = (blocks + 1) / 2;
  const char* codes = rows.codes;
  const float* scale = rows.scale;
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
  for (int64_t j = 0; j < blocks; ++j, codes += NF4_BLOCK / 2, ++scale) {
    const int64_t line = j / 2 + AHEAD;
    const char* ahead = line < lines ? codes + AHEAD * 64 : rows.next ? rows.next + (line - lines) * 64 : codes;
    ahead += j % 2 * (TILE_SIDE / 2) * rows.stride;
    for (int64_t r = 0; r < TILE_SIDE / 2; ++r) __builtin_prefetch(ahead + r * rows.stride, 0, 2);
    if (rows.next_scales) __builtin_prefetch(rows.next_scales + j * 64, 0, 2);
    nf4_tiles(tiles[j % 2], codes, rows.stride, scale, rows.scale_stride, rows.count);
    if (j == 0) continue;
    amx_nf4_dots<COLUMNS>(tiles[(j - 1) % 2], b, ldb);
    b += NF4_WORDS * ldb;
  }
  amx_nf4_dots<COLUMNS>(tiles[(blocks - 1) % 2], b, ldb);
  tile_store<0>(c, ldc * 4);
  if constexpr (COLUMNS > 1) tile_store<1>(c + TILE_SIDE, ldc * 4);
  if constexpr (COLUMNS > 2) tile_store<2>(c + 2 * TILE_SIDE, ldc * 4);
  if constexpr (COLUMNS > 3) tile_store<3>(c + 3 * TILE_SIDE, ldc * 4);
}

// The factors of the row whose codes are at `row`, as far as both lie in the tensors of `a`: only for fetching.
MOE_INLINE const char* factors_at(const Operand& a, const char* row, int64_t row_bytes) {
  const int64_t apart = (reinterpret_cast<intptr_t>(row) - reinterpret_cast<intptr_t>(a.base)) / row_bytes;
  return reinterpret_cast<const char*>(reinterpret_cast<intptr_t>(a.scale) + apart * a.scale_stride * 4);
}

template <int COLUMNS>
inline void product_amx_nf4_narrow(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                   int64_t ldb, bool accumulate) {
  const int64_t blocks = depth / NF4_BLOCK, row_bytes = a.row_stride / 2;
  for (int64_t m = 0; m < rows;) {
    const int64_t apart = rows_apart(row_bytes, rows - m);
    const int64_t height = apart * TILE_SIDE;
    // A group's factors are as many lines as it has tiles times blocks.
    const char* group = m + height < rows ? a.base + (m + height) * row_bytes : a.next;
    const char* scales = group ? factors_at(a, group, row_bytes) : nullptr;
    for (int64_t i = 0; i < apart; ++i) {
      const char* next = i + 1 < apart ? a.base + (m + i + 1) * row_bytes : group;
      const Nf4Rows tile{a.base + (m + i) * row_bytes,
                         apart * row_bytes,
                         a.scale + (m + i) * a.scale_stride,
                         apart * a.scale_stride,
                         std::min(rows - m, TILE_SIDE),
                         next,
                         scales ? scales + i * blocks * 64 : nullptr};
      amx_nf4_narrow<COLUMNS>(c + (m + i) * ldc, apart * ldc, tile, blocks, b, ldb, accumulate);
    }
    m += height;
  }
}

// One or two tiles of rows by one or two of columns.
template <int ROWS, int COLUMNS>
inline void amx_nf4_wide(const float* left, int64_t second, const float* b, int64_t ldb, int64_t tiles, float* c,
                         int64_t ldc, bool accumulate, Ahead& ahead) {
  const int64_t b_stride = ldb * 4;
  load_sums<ROWS, COLUMNS>(c, ldc, accumulate);
  for (int64_t t = 0; t < tiles; ++t, left += NF4_TILE, b += TILE_SIDE * ldb) {
    ahead.fetch();
    ahead.fetch();
    tile_load<6>(b, b_stride);
    tile_load<4>(left, TILE_ROW_BYTES);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (ROWS == 2) {
      tile_load<5>(left + second, TILE_ROW_BYTES);
      tile_dot_bf16<2, 5, 6>();
    }
    if constexpr (COLUMNS == 2) {
      tile_load<7>(b + TILE_SIDE, b_stride);
      tile_dot_bf16<1, 4, 7>();
      if constexpr (ROWS == 2) tile_dot_bf16<3, 5, 7>();
    }
  }
  store_sums<ROWS, COLUMNS>(c, ldc);
}

// For many columns: a stretch of 32 rows is unpacked once for all of them.
inline void product_amx_nf4_wide(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                 int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  constexpr int64_t HEIGHT = 2 * TILE_SIDE, SECOND = AMX_NF4_SPAN / 32 * NF4_TILE;
  const int64_t row_bytes = a.row_stride / 2;
  for (int64_t m = 0; m < rows; m += HEIGHT) {
    const int64_t count = std::min(rows - m, HEIGHT);
    if (count % TILE_SIDE != 0) std::memset(scratch, 0, 2 * SECOND * sizeof(float));
    Ahead ahead = ahead_of<Nf4Words>(a, m + HEIGHT, rows, HEIGHT, depth);
    for (int64_t k = 0; k < depth; k += AMX_NF4_SPAN) {
      const int64_t part = std::min(depth - k, AMX_NF4_SPAN), tiles = part / 32;
      for (int64_t i = 0; i * TILE_SIDE < count; ++i) {
        const char* codes = a.base + (m + i * TILE_SIDE) * row_bytes + k / 2;
        const float* scale = a.scale + (m + i * TILE_SIDE) * a.scale_stride + k / NF4_BLOCK;
        for (int64_t j = 0; j < part / NF4_BLOCK; ++j)
          nf4_tiles(scratch + i * SECOND + 2 * j * NF4_TILE, codes + j * (NF4_BLOCK / 2), row_bytes, scale + j,
                    a.scale_stride, std::min(count - i * TILE_SIDE, TILE_SIDE));
      }
      const bool add = accumulate || k > 0;
      for (int64_t n = 0; n < columns; n += 2 * TILE_SIDE) {
        const float* right = b + k / 2 * ldb + n;
        float* to = c + m * ldc + n;
        const bool two = n + TILE_SIDE < columns;
        if (count > TILE_SIDE)
          two ? amx_nf4_wide<2, 2>(scratch, SECOND, right, ldb, tiles, to, ldc, add, ahead)
              : amx_nf4_wide<2, 1>(scratch, SECOND, right, ldb, tiles, to, ldc, add, ahead);
        else
          two ? amx_nf4_wide<1, 2>(scratch, SECOND, right, ldb, tiles, to, ldc, add, ahead)
              : amx_nf4_wide<1, 1>(scratch, SECOND, right, ldb, tiles, to, ldc, add, ahead);
      }
    }
  }
}

template <int COLUMNS = AMX_NF4_NARROW>
inline void product_amx_nf4_of_width(int64_t width, float* c, int64_t ldc, const Operand& a, int64_t rows,
                                     int64_t depth, const float* b, int64_t ldb, bool accumulate) {
  if (width == COLUMNS)
    product_amx_nf4_narrow<COLUMNS>(c, ldc, a, rows, depth, b, ldb, accumulate);
  else if constexpr (COLUMNS > 1)
    product_amx_nf4_of_width<COLUMNS - 1>(width, c, ldc, a, rows, depth, b, ldb, accumulate);
}

inline void product_amx_nf4(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                            int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  if (depth == 0 || columns == 0) return;
  const int64_t width = (columns + TILE_SIDE - 1) / TILE_SIDE;
  tile_begin(columns <= AMX_FEW ? columns : TILE_SIDE);
  if (width <= AMX_NF4_NARROW)
    product_amx_nf4_of_width(width, c, ldc, a, rows, depth, b, ldb, accumulate);
  else
    product_amx_nf4_wide(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
  tile_end();
}

inline void pack_columns_amx_nf4(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column,
                                 int64_t columns) {
  if (count > AMX_FEW) {
    pack_columns_nf4<0>(b, ldb, rows, count, first_column, columns);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* scale = rows.scale ? rows.scale + i : nullptr;
    for (int64_t j = 0; j < columns; j += NF4_BLOCK) {
      const Vec low = row_words(rows.at(i, first_column + j), rows.dtype, 32, scale);
      const Vec high = row_words(rows.at(i, first_column + j + 32), rows.dtype, 32, scale);
      scatter_words(b + j / 2 * count + i, count, nf4_order(low, high, 0));
      scatter_words(b + (j / 2 + LANES) * count + i, count, nf4_order(low, high, 1));
    }
  }
}

inline void pack_block_amx_nf4(float* b, int64_t ldb, int64_t first, const float* src, int64_t ld, int64_t depth,
                               int64_t columns) {
  if (columns > AMX_FEW) {
    pack_block_nf4<0>(b, ldb, first, src, ld, depth, columns);
    return;
  }
  for (int64_t k = 0; k < depth; k += NF4_BLOCK)
    for (int64_t w = 0; w < NF4_WORDS; ++w) {
      const float* low = src + (k + 8 * (w % 8) + w / 8) * ld;
      const Vec word = join_pairs(load_first(low, columns), load_first(low + 4 * ld, columns));
      store_first(b + (first + k / 2 + w) * columns, word, columns);
    }
}

constexpr Form AMX_NF4 = {DType::bf16,
                          PairWords::UNIT,
                          AMX_NF4_SPAN / 2,
                          NF4_BLOCK,
                          1,
                          TILE_SIDE,
                          AMX_FEW,
                          0,
                          2 * AMX_NF4_SPAN / 32 * NF4_TILE,
                          product_amx_nf4,
                          nullptr,
                          pack_columns_amx_nf4,
                          nullptr,
                          pack_block_amx_nf4};

}  // namespace
}  // namespace moe
