// Packing operands into bfloat16 pairs, with AVX-512 and its conversions.
#pragma once

#include <algorithm>

#include "kernels.h"
#include "vec.h"

namespace moe {
namespace {

// The first `count` bfloat16 at src, as the pairs of up to 16 words; the rest is zero.
MOE_INLINE Vec load_first_pairs(const char* src, int64_t count) {
  const __mmask32 mask = count >= 32 ? 0xffffffffu : (1u << count) - 1;
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_epi16(mask, src));
}

// The first `count` 16-bit values at src, each in a word of its own.
MOE_INLINE VecU load_first_bits(const char* src, int64_t count) {
  const __mmask16 mask = count >= 16 ? 0xffffu : static_cast<__mmask16>((1u << count) - 1);
  return reinterpret_cast<VecU>(_mm512_maskz_cvtepu16_epi32(mask, _mm256_maskz_loadu_epi16(mask, src)));
}

// low and high, rounded to bfloat16, in the halves of each word.
MOE_INLINE Vec join_pairs(Vec low, Vec high) {
  const VecH low_bits = reinterpret_cast<VecH>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(low)));
  const VecH high_bits = reinterpret_cast<VecH>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(high)));
  return reinterpret_cast<Vec>(__builtin_convertvector(low_bits, VecU) | __builtin_convertvector(high_bits, VecU)
                                                                             << 16);
}

// 32 consecutive values of a row, of which `count` exist, as 16 words.
MOE_INLINE Vec row_words(const char* src, DType dtype, int64_t count, const float* scale) {
  if (dtype == DType::bf16 && !scale) return load_first_pairs(src, count);
  const int64_t item = item_size(dtype), first = std::min<int64_t>(count, LANES);
  const Vec factor = splat(scale ? *scale : 1.0f);
  const Vec low = load_first_as(src, dtype, first) * factor;
  const Vec high = count > LANES
                       ? load_first_as(src + LANES * item, dtype, std::min<int64_t>(count - LANES, LANES)) * factor
                       : Vec{};
  return reinterpret_cast<Vec>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
}

template <int64_t FEW>
inline void pack_columns_pairs(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column,
                               int64_t columns) {
  const int64_t words = (columns + 1) / 2;
  const auto word = [&](int64_t i, int64_t j) {
    return row_words(rows.at(i, first_column + 2 * j), rows.dtype, std::min<int64_t>(columns - 2 * j, 32),
                     rows.scale ? rows.scale + i : nullptr);
  };
  if (count <= FEW) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < words; j += LANES) store(b + few_word(count, j, i), word(i, j));
    return;
  }
  for (int64_t i = 0; i < ldb; i += LANES) {
    const int64_t height = std::max<int64_t>(0, std::min<int64_t>(count - i, LANES));
    for (int64_t j = 0; j < words; j += LANES) {
      Vec block[LANES];
      for (int64_t r = 0; r < LANES; ++r) block[r] = r < height ? word(i + r, j) : Vec{};
      transpose(block);
      const int64_t filled = std::min<int64_t>(words - j, LANES);
      for (int64_t w = 0; w < filled; ++w) store(b + (j + w) * ldb + i, block[w]);
    }
  }
}

inline void pack_rows_pairs(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column,
                            int64_t columns) {
  const int64_t item = item_size(rows.dtype);
  for (int64_t i = 0; i < count; i += 2) {
    const bool alone = i + 1 == count;
    const char *low = rows.at(i, first_column), *high = alone ? low : rows.at(i + 1, first_column);
    const Vec low_factor = splat(rows.scale ? rows.scale[i] : 1.0f);
    const Vec high_factor = splat(rows.scale && !alone ? rows.scale[i + 1] : 1.0f);
    for (int64_t j = 0; j < ldb; j += LANES) {
      const int64_t width = std::max<int64_t>(0, std::min<int64_t>(columns - j, LANES));
      Vec word;
      if (rows.dtype == DType::bf16 && !rows.scale)
        word = reinterpret_cast<Vec>(load_first_bits(low + j * 2, width) |
                                     (alone ? VecU{} : load_first_bits(high + j * 2, width) << 16));
      else
        word = join_pairs(load_first_as(low + j * item, rows.dtype, width) * low_factor,
                          alone ? Vec{} : load_first_as(high + j * item, rows.dtype, width) * high_factor);
      store(b + i / 2 * ldb + j, word);
    }
  }
}

template <int64_t FEW>
inline void pack_block_pairs(float* b, int64_t ldb, int64_t first, const float* src, int64_t ld, int64_t depth,
                             int64_t columns) {
  for (int64_t k = 0; k < depth; k += 2) {
    for (int64_t n = 0; n < columns; n += LANES) {
      const int64_t width = std::min<int64_t>(ld - n, LANES);
      const Vec low = load_first(src + k * ld + n, width);
      const Vec high = k + 1 < depth ? load_first(src + (k + 1) * ld + n, width) : Vec{};
      const Vec word = join_pairs(low, high);
      if (columns > FEW) {
        store(b + (first + k / 2) * ldb + n, word);
        continue;
      }
      float lane[LANES];
      store(lane, word);
      for (int64_t i = 0; i < width; ++i)
        std::memcpy(b + few_word(columns, first + k / 2, n + i), lane + i, sizeof(float));
    }
  }
}

}  // namespace
}  // namespace moe
