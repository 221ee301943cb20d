// The product with many columns: vectors along n, one register tile of rows at a time.
//
// It is written once for every kind of left operand. An operand's kind says how its rows become 32-bit words side by
// side in scratch, and what one word times one vector of the packed right operand adds:
//
//   UNIT              k in a word
//   RUN               words that are summed from zero before they are added to the result
//   SLOTS             a run has so many sums, of every SLOTS-th word, which are added to the result in turn
//   SCALED            whether a run is multiplied by a factor when it is added; SCALE_STEP is 1 where each run of a row
//                     has its own, and 0 where the row has one
//   copy_row          (words, operand, row, first k, k's): a row's words
//   direct            whether an operand's words lie in memory as they are wanted, and need no copying
//   copy_columns      (words, operand, first row, rows, first k, k's): LANES rows side by side, for transposed operands
//   multiply_add      (word in every lane, right, sum)
//
// One rule fixes the bits of every element: words are added in order of k within a run, runs in order. It does not
// depend on how the product is cut into tiles and calls.
#pragma once

#include "kernels.h"
#include "vec.h"

namespace moe {
namespace {

// Register tile: TILE_ROWS x up to TILE_VECTORS accumulators, with room for the operands.
#if defined(MOE_ISA_AVX512)
constexpr int TILE_ROWS = 8;
constexpr int TILE_VECTORS = 3;
#elif defined(MOE_ISA_NEON)
constexpr int TILE_ROWS = 4;
constexpr int TILE_VECTORS = 6;
#else
constexpr int TILE_ROWS = 4;
constexpr int TILE_VECTORS = 3;
#endif
static_assert(LANES % TILE_ROWS == 0, "a group of LANES rows is cut into whole tiles");

// A row of the tile's words; the extra line keeps rows of one tile out of one cache set.
template <class Kind>
constexpr int64_t ROW_PITCH = Kind::DEPTH + 16;
template <class Kind>
constexpr int64_t PANEL_SCRATCH =
    TILE_ROWS * ROW_PITCH<Kind> > Kind::DEPTH* LANES ? TILE_ROWS * ROW_PITCH<Kind> : Kind::DEPTH * LANES;

// The part of a weight that the next tile will read, fetched in the order of its addresses while this tile computes.
// Measured (Zen 4): 29 GB/s, where fetching a little ahead in each of 16 rows gives 24.
struct Ahead {
  const char* at = nullptr;
  const char* end_of_row = nullptr;
  const char* end = nullptr;
  int64_t row_bytes = 0;  // from row to row
  int64_t width = 0;      // of a row, in bytes

  Ahead() = default;
  Ahead(const char* base, int64_t rows, int64_t row_bytes, int64_t width)
      : at(base),
        end_of_row(base + width),
        end(base + (rows - 1) * row_bytes + width),
        row_bytes(row_bytes),
        width(width) {}

  MOE_INLINE void fetch() {
    if (at >= end) return;
    __builtin_prefetch(at, 0, 2);
    at += 64;
    if (at >= end_of_row) {
      at = end_of_row - width + row_bytes;
      end_of_row += row_bytes;
    }
  }
};

// Left operand of a tile: words [row][k], `pitch` apart, or, with BY_ROWS false, [k][row] with LANES rows side by side.
struct Left {
  const float* words;
  int64_t pitch;
  const float* scale;    // factor of (row, run) where the kind is SCALED
  int64_t scale_stride;  // from row to row
  int64_t rows;          // that exist; the spare ones use the last one's factors
};

template <class Kind, int VECTORS, bool BY_ROWS>
inline __attribute__((noinline)) void panel_tile(const Left& left, const float* b, int64_t ldb, int64_t words, float* c,
                                                 int64_t ldc, bool accumulate, Ahead& ahead) {
  // Each step reads TILE_ROWS words; after so many, a cache line of every row is through.
  constexpr int64_t STEPS_PER_LINE = 16 / TILE_ROWS > 0 ? 16 / TILE_ROWS : 1;
  const float* a = left.words;
  for (int64_t begin = 0, index = 0; begin < words; begin += Kind::RUN, ++index) {
    const int64_t end = words - begin < Kind::RUN ? words : begin + Kind::RUN;
    for (int64_t slot = 0; slot < Kind::SLOTS; ++slot) {
      Vec acc[TILE_ROWS][VECTORS] = {};
      for (int64_t k = begin + slot, step = 0; k < end; k += Kind::SLOTS, ++step) {
        if (step % STEPS_PER_LINE == 0) ahead.fetch();
        Vec right[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) right[v] = load(b + k * ldb + v * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < TILE_ROWS; ++m) {
          const Vec word = splat_word(BY_ROWS ? a + m * left.pitch + k : a + k * LANES + m);
#pragma GCC unroll 8
          for (int v = 0; v < VECTORS; ++v) acc[m][v] = Kind::multiply_add(word, right[v], acc[m][v]);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < TILE_ROWS; ++m) {
        const Vec factor =
            Kind::SCALED
                ? splat(left.scale[(m < left.rows ? m : left.rows - 1) * left.scale_stride + index * Kind::SCALE_STEP])
                : Vec{};
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) {
          float* at = c + m * ldc + v * LANES;
          if constexpr (Kind::SCALED)
            store(at, accumulate ? fma(factor, acc[m][v], load(at)) : factor * acc[m][v]);
          else
            store(at, accumulate ? load(at) + acc[m][v] : acc[m][v]);
        }
      }
      accumulate = true;
    }
  }
}

template <class Kind, bool BY_ROWS, int VECTORS = TILE_VECTORS>
inline void panel_of_width(int vectors, const Left& left, const float* b, int64_t ldb, int64_t words, float* c,
                           int64_t ldc, bool accumulate, Ahead& ahead) {
  if (vectors == VECTORS)
    panel_tile<Kind, VECTORS, BY_ROWS>(left, b, ldb, words, c, ldc, accumulate, ahead);
  else if constexpr (VECTORS > 1)
    panel_of_width<Kind, BY_ROWS, VECTORS - 1>(vectors, left, b, ldb, words, c, ldc, accumulate, ahead);
}

template <class Kind, bool BY_ROWS>
inline void panel_strip(const Left& left, const float* b, int64_t ldb, int64_t words, int64_t columns, float* c,
                        int64_t ldc, bool accumulate, Ahead& ahead) {
  int vectors = static_cast<int>((columns + LANES - 1) / LANES);
  while (vectors > 0) {
    int width = vectors;
    // Two panels of like width instead of a full one and a sliver.
    if (width > TILE_VECTORS) width = width < 2 * TILE_VECTORS ? (width + 1) / 2 : TILE_VECTORS;
    panel_of_width<Kind, BY_ROWS>(width, left, b, ldb, words, c, ldc, accumulate, ahead);
    b += width * LANES;
    c += width * LANES;
    vectors -= width;
  }
}

// What to fetch while a tile computes: `height` of the operand's rows from `row` on, or, where it has no more, as many
// of those that will be read after its last ones.
template <class Kind>
inline Ahead ahead_of(const Operand& a, int64_t row, int64_t rows, int64_t height, int64_t depth) {
  if (row < rows) return Kind::ahead(a, row, rows - row < height ? rows - row : height, depth);
  if (!a.next) return {};
  Operand after = a;
  after.base = a.next;
  return Kind::ahead(after, row - rows, height, depth);
}

// `scratch` is of PANEL_SCRATCH floats. Rows behind the last one repeat it: what they give lands in c's spare rows.
template <class Kind>
inline void panel_by_rows(float* c, int64_t ldc, const typename Kind::Operand& a, int64_t rows, int64_t depth,
                          const float* b, int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  const int64_t span = Kind::DEPTH * Kind::UNIT;
  Ahead ahead;
  for (int64_t m = 0; m < rows; m += TILE_ROWS) {
    const int64_t left_rows = rows - m - TILE_ROWS;
    ahead = ahead_of<Kind>(a, m + TILE_ROWS, rows, TILE_ROWS, depth);
    for (int64_t k = 0; k < depth; k += span) {
      const int64_t part = depth - k < span ? depth - k : span;
      Left left = Kind::left(a, m, k);
      left.rows = left_rows < 0 ? rows - m : TILE_ROWS;
      if (left_rows < 0 || !Kind::direct(a, part)) {
        for (int64_t r = 0; r < TILE_ROWS; ++r)
          Kind::copy_row(scratch + r * ROW_PITCH<Kind>, a, m + r < rows ? m + r : rows - 1, k, part);
        left.words = scratch;
        left.pitch = ROW_PITCH<Kind>;
      }
      panel_strip<Kind, true>(left, b + k / Kind::UNIT * ldb, ldb, (part + Kind::UNIT - 1) / Kind::UNIT, columns,
                              c + m * ldc, ldc, accumulate || k > 0, ahead);
    }
  }
}

template <class Kind>
inline void panel_by_columns(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                             int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  const int64_t span = Kind::DEPTH * Kind::UNIT, item = item_size(a.dtype);
  for (int64_t g = 0; g < rows; g += LANES) {
    const int64_t count = rows - g < LANES ? rows - g : LANES;
    for (int64_t k = 0; k < depth; k += span) {
      const int64_t part = depth - k < span ? depth - k : span;
      Kind::copy_columns(scratch, a, g, count, k, part);
      Ahead ahead;
      if (g + LANES < rows)
        ahead = Ahead(a.base + (g + LANES + k * a.col_stride) * item, part, a.col_stride * item, LANES * item);
      for (int64_t m = 0; m < count; m += TILE_ROWS)
        panel_strip<Kind, false>({scratch + m, LANES, nullptr, 0, TILE_ROWS}, b + k / Kind::UNIT * ldb, ldb,
                                 (part + Kind::UNIT - 1) / Kind::UNIT, columns, c + (g + m) * ldc, ldc,
                                 accumulate || k > 0, ahead);
    }
  }
}

}  // namespace
}  // namespace moe
