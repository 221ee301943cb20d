// Low-rank products of bfloat16 on AMX.
//
// `shrink`: rows of x are the A operand, 32 at a time, copied side by side; the rows of A are packed into pairs. Two
// sums for each number, of every second 32 k, hide the latency of a product, and are added at the end. `expand`: a
// tile's 32 k hold 16 numbers of h twice, rounded to bfloat16 and what the rounding left, so that h counts with 16
// bits; the 16 columns of B are there twice.
#pragma once

#include "amx_tile.h"
#include "low_rank.h"
#include "pack_pairs.h"

namespace moe {
namespace {

constexpr int64_t PAIR_TILE = 2 * TILE_SIDE;                  // k of a tile
constexpr int64_t COPY_DEPTH = 8 * PAIR_TILE;                 // k of the rows that are copied at a time
constexpr int64_t COPY_PITCH = COPY_DEPTH + PAIR_TILE;        // a line more keeps rows out of one cache set
constexpr int64_t EXPAND_TILES = EXPAND_COLUMNS / TILE_SIDE;  // of columns that are computed together
static_assert(EXPAND_TILES == 4, "one tile of sums each");

// words[w][r] = the pair w of row r, for the 16 pairs from k on.
inline void pack_shrink_tile(float* words, const Operand& a, int64_t ranks, int64_t k, int64_t depth) {
  Vec block[LANES];
  for (int64_t r = 0; r < LANES; ++r)
    block[r] = r < ranks ? load_first_pairs(a.base + (r * a.row_stride + k) * 2, depth - k) : Vec{};
  transpose(block);
  for (int64_t w = 0; w < LANES; ++w) store(words + w * TILE_SIDE, block[w]);
}

// One or two tiles of rows times 16 rows of A, packed.
template <int TILES>
inline void shrink_tiles(float* h, int64_t ldh, const Rows& rows, int64_t count, const float* packed, int64_t ranks,
                         int64_t depth) {
  alignas(64) uint16_t copy[TILES * TILE_SIDE * COPY_PITCH];
  alignas(64) float sums[4][TILE_WORDS];
  // Rows behind the last one; what they give is not stored.
  std::memset(copy + count * COPY_PITCH, 0, static_cast<size_t>((TILES * TILE_SIDE - count) * COPY_PITCH) * 2);
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  constexpr int64_t STRIDE = COPY_PITCH * 2;
  for (int64_t k = 0; k < depth; k += COPY_DEPTH) {
    const int64_t part = depth - k < COPY_DEPTH ? depth - k : COPY_DEPTH;
    const int64_t padded = (part + 2 * PAIR_TILE - 1) / (2 * PAIR_TILE) * (2 * PAIR_TILE);
    for (int64_t i = 0; i < count; ++i) {
      const char* from = rows.at(i, k);
      float* to = reinterpret_cast<float*>(copy + i * COPY_PITCH);
      for (int64_t j = 0; j < padded; j += PAIR_TILE) {
        __builtin_prefetch(from + (j + COPY_DEPTH) * 2);
        store(to + j / 2, load_first_pairs(from + j * 2, part > j ? part - j : 0));
      }
    }
    const char* left = reinterpret_cast<const char*>(copy);
    const float* right = packed + k / PAIR_TILE * TILE_WORDS;
    for (int64_t j = 0; j < padded; j += 2 * PAIR_TILE, right += 2 * TILE_WORDS) {
      tile_load<6>(right, 64);
      tile_load<7>(right + TILE_WORDS, 64);
      tile_load<4>(left + j * 2, STRIDE);
      tile_dot_bf16<0, 4, 6>();
      tile_load<5>(left + (j + PAIR_TILE) * 2, STRIDE);
      tile_dot_bf16<1, 5, 7>();
      if constexpr (TILES == 2) {
        tile_load<4>(left + TILE_SIDE * STRIDE + j * 2, STRIDE);
        tile_dot_bf16<2, 4, 6>();
        tile_load<5>(left + TILE_SIDE * STRIDE + (j + PAIR_TILE) * 2, STRIDE);
        tile_dot_bf16<3, 5, 7>();
      }
    }
  }
  tile_store<0>(sums[0], 64);
  tile_store<1>(sums[1], 64);
  if constexpr (TILES == 2) {
    tile_store<2>(sums[2], 64);
    tile_store<3>(sums[3], 64);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float* even = sums[i / TILE_SIDE * 2] + i % TILE_SIDE * TILE_SIDE;
    store_first(h + i * ldh, load(even) + load(even + TILE_WORDS), ranks);
  }
}

inline void shrink_amx(float* h, int64_t ldh, const Rows& rows, int64_t count, const Operand& a, int64_t rank,
                       int64_t depth, Upcoming upcoming) {
  if (a.dtype != DType::bf16) {
    shrink(h, ldh, rows, count, a, rank, depth, upcoming);
    return;
  }
  // The k of both sums of a number, filled up with zeros.
  const int64_t tiles = (depth + 2 * PAIR_TILE - 1) / (2 * PAIR_TILE) * 2;
  float* packed = static_cast<float*>(row_scratch(static_cast<size_t>(tiles * TILE_WORDS) * sizeof(float)));
  tile_begin();
  for (int64_t r = 0; r < rank; r += TILE_SIDE) {
    const int64_t ranks = rank - r < TILE_SIDE ? rank - r : TILE_SIDE;
    for (int64_t t = 0; t < tiles; ++t) {
      fetch(upcoming, TILE_SIDE);
      if (t * PAIR_TILE < depth)
        pack_shrink_tile(packed + t * TILE_WORDS, a.at(r, 0), ranks, t * PAIR_TILE, depth);
      else
        std::memset(packed + t * TILE_WORDS, 0, TILE_WORDS * sizeof(float));
    }
    for (int64_t i = 0; i < count; i += 2 * TILE_SIDE) {
      const int64_t left = count - i;
      if (left > TILE_SIDE)
        shrink_tiles<2>(h + i * ldh + r, ldh, rows.from(i), left < 2 * TILE_SIDE ? left : 2 * TILE_SIDE, packed, ranks,
                        depth);
      else
        shrink_tiles<1>(h + i * ldh + r, ldh, rows.from(i), left, packed, ranks, depth);
    }
  }
  tile_end();
}

// Word w (the pair 2w, 2w + 1) of 16 rows of 8 words side by side; rows from `count` on and words behind `ranks` zero.
inline void pairs_of_columns(Vec (&words)[8], const Operand& b, int64_t count, int64_t ranks) {
  const __mmask16 mask = ranks >= 16 ? 0xffffu : static_cast<__mmask16>((1u << ranks) - 1);
  const auto row = [&](int64_t i) {
    return i < count ? _mm256_maskz_loadu_epi16(mask, b.base + i * b.row_stride * 2) : _mm256_setzero_si256();
  };
  __m512i v[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) v[i] = _mm512_inserti64x4(_mm512_castsi256_si512(row(i)), row(i + 8), 1);
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m512i low01 = _mm512_unpacklo_epi32(v[i], v[i + 1]), high01 = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    const __m512i low23 = _mm512_unpacklo_epi32(v[i + 2], v[i + 3]), high23 = _mm512_unpackhi_epi32(v[i + 2], v[i + 3]);
    t[i] = _mm512_unpacklo_epi64(low01, low23);
    t[i + 1] = _mm512_unpackhi_epi64(low01, low23);
    t[i + 2] = _mm512_unpacklo_epi64(high01, high23);
    t[i + 3] = _mm512_unpackhi_epi64(high01, high23);
  }
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13);
  const __m512i second = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    words[j] = reinterpret_cast<Vec>(_mm512_permutex2var_epi64(t[j], first, t[4 + j]));
    words[4 + j] = reinterpret_cast<Vec>(_mm512_permutex2var_epi64(t[j], second, t[4 + j]));
  }
}

// Tiles [16 columns][16 ranks][word][column]: the 8 words of 16 ranks, twice.
inline void pack_expand_amx(float* packed, const Operand& b, int64_t columns, int64_t rank) {
  if (b.dtype != DType::bf16) {
    pack_expand(packed, b, columns, rank);
    return;
  }
  for (int64_t first = 0; first < columns; first += TILE_SIDE) {
    const int64_t count = columns - first < TILE_SIDE ? columns - first : TILE_SIDE;
    for (int64_t r = 0; r < rank; r += TILE_SIDE, packed += TILE_WORDS) {
      const Operand part = b.at(first, r);
      const int64_t ranks = rank - r;
      Vec words[8];
      if (b.row_stride == 1) {
        for (int64_t w = 0; w < 8; ++w) {
          const char* at = part.base + 2 * w * b.col_stride * 2;
          const VecU low = 2 * w < ranks ? load_first_bits(at, count) : VecU{};
          const VecU high = 2 * w + 1 < ranks ? load_first_bits(at + b.col_stride * 2, count) : VecU{};
          words[w] = reinterpret_cast<Vec>(low | high << 16);
        }
      } else {
        pairs_of_columns(words, part, count, ranks);
      }
      for (int64_t w = 0; w < 8; ++w) {
        store(packed + w * TILE_SIDE, words[w]);
        store(packed + (w + 8) * TILE_SIDE, words[w]);
      }
    }
  }
}

// A row of a tile: 16 values rounded to bfloat16, then what the rounding left of them. Of an infinity it leaves
// nothing.
MOE_INLINE void store_split(uint16_t* to, Vec values) {
  const __m512 whole = reinterpret_cast<__m512>(values);
  const VecH high = reinterpret_cast<VecH>(_mm512_cvtneps_pbh(whole));
  const __m512 rest = _mm512_sub_ps(whole, reinterpret_cast<__m512>(widen_bf16(high)));
  const __m512 finite = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(rest, rest, _CMP_ORD_Q), rest);
  *reinterpret_cast<VecHAny*>(to) = high;
  *reinterpret_cast<VecHAny*>(to + TILE_SIDE) = reinterpret_cast<VecH>(_mm512_cvtneps_pbh(finite));
}

// 16 rows times `tiles` tiles of columns, into sums[i * EXPAND_COLUMNS + j].
inline void expand_tiles(float* sums, const uint16_t* split, const float* packed, int64_t blocks, int64_t tiles) {
  constexpr int64_t STRIDE = EXPAND_COLUMNS * 4;
  const int64_t step = blocks * TILE_WORDS;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t block = 0; block < blocks; ++block) {
    const float* right = packed + block * TILE_WORDS;
    tile_load<4>(split + block * TILE_SIDE * PAIR_TILE, 64);
    tile_load<6>(right, 64);
    tile_dot_bf16<0, 4, 6>();
    if (tiles > 1) {
      tile_load<7>(right + step, 64);
      tile_dot_bf16<1, 4, 7>();
    }
    if (tiles > 2) {
      tile_load<6>(right + 2 * step, 64);
      tile_dot_bf16<2, 4, 6>();
    }
    if (tiles > 3) {
      tile_load<7>(right + 3 * step, 64);
      tile_dot_bf16<3, 4, 7>();
    }
  }
  tile_store<0>(sums, STRIDE);
  if (tiles > 1) tile_store<1>(sums + TILE_SIDE, STRIDE);
  if (tiles > 2) tile_store<2>(sums + 2 * TILE_SIDE, STRIDE);
  if (tiles > 3) tile_store<3>(sums + 3 * TILE_SIDE, STRIDE);
}

inline void expand_amx(const RowsOut& out, int64_t first, const float* h, int64_t ldh, int64_t count,
                       const float* packed, int64_t rank, int64_t columns) {
  if (out.dtype != DType::bf16) {
    expand(out, first, h, ldh, count, packed, rank, columns);
    return;
  }
  const int64_t blocks = (rank + TILE_SIDE - 1) / TILE_SIDE;
  uint16_t* split =
      static_cast<uint16_t*>(row_scratch(static_cast<size_t>(blocks * TILE_SIDE * PAIR_TILE) * sizeof(uint16_t) + 64));
  alignas(64) float sums[TILE_SIDE * EXPAND_COLUMNS];
  tile_begin();
  for (int64_t i = 0; i < count; i += TILE_SIDE) {
    const int64_t rows = count - i < TILE_SIDE ? count - i : TILE_SIDE;
    for (int64_t m = 0; m < TILE_SIDE; ++m)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t r = block * TILE_SIDE, ranks = rank - r < TILE_SIDE ? rank - r : TILE_SIDE;
        store_split(split + (r + m) * PAIR_TILE, m < rows ? load_first(h + (i + m) * ldh + r, ranks) : Vec{});
      }
    const float* tile = packed;
    for (int64_t j = 0; j < columns; j += EXPAND_COLUMNS, tile += EXPAND_TILES * blocks * TILE_WORDS) {
      const int64_t width = columns - j < EXPAND_COLUMNS ? columns - j : EXPAND_COLUMNS;
      expand_tiles(sums, split, tile, blocks, (width + TILE_SIDE - 1) / TILE_SIDE);
      for (int64_t m = 0; m < rows; ++m) {
        const int64_t at = (out.index[i + m] * out.stride + first + j) * 2;
        for (int64_t v = 0; v < width; v += LANES) {
          const __mmask16 mask = width - v >= LANES ? 0xffffu : static_cast<__mmask16>((1u << (width - v)) - 1);
          Vec sum = load(sums + m * EXPAND_COLUMNS + v);
          if (out.base)
            sum += widen_bf16(reinterpret_cast<VecH>(_mm256_maskz_loadu_epi16(mask, out.base + at + v * 2)));
          _mm256_mask_storeu_epi16(out.data + at + v * 2, mask,
                                   reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(sum))));
        }
      }
    }
  }
  tile_end();
}

}  // namespace
}  // namespace moe
