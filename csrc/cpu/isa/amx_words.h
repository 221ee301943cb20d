// Packed words of few columns for AMX tiles.
#pragma once

#include "vec.h"

namespace moe {
namespace {

// Up to so many columns, those of a word lie next to each other without padding, so that all words stay in the
// first-level cache beside the weights. A tile on the right then has as many columns (tile_begin).
constexpr int64_t AMX_FEW = 8;

// 16 words of a column to where it has its words, `columns` apart.
MOE_INLINE void scatter_words(float* to, int64_t columns, Vec words) {
  if (columns == 1) {
    store(to, words);
    return;
  }
  float lane[LANES];
  store(lane, words);
  for (int64_t i = 0; i < LANES; ++i) std::memcpy(to + i * columns, lane + i, sizeof(float));
}

// How many rows apart those of a tile shall lie, a power of two: a page, as far as there are so many rows. Then each
// page is read from its beginning to its end by one tile after the other, which the processor foresees. (Xeon with AMX,
// NF4: 23.1 values a nanosecond and core, with neighbours as rows 17.7.)
inline int64_t rows_apart(int64_t row_bytes, int64_t rows) {
  constexpr int64_t PAGE = 4096, SIDE = 16;
  int64_t apart = 1;
  while (2 * apart * row_bytes <= PAGE && 2 * apart * SIDE <= rows) apart *= 2;
  return apart;
}

}  // namespace
}  // namespace moe
