// int8 weights on AMX. As in int8_quads.h a column of the right operand is rounded to integers with one factor, to 8
// bits in one plane or 16 bits in two. Tiles take signed bytes on both sides, so nothing has to be added to them: the
// only plane, or the high one of v = 256 high + low, is signed, the low one unsigned. All sums are exact integers.
//
// A packed operand lies in whole tiles: for each 16 columns, the tiles of each plane in order of k, 1 KiB each; of few
// columns the words of each plane, as in amx_words.h. The columns' factors follow.
#pragma once

#include "amx_tile_int8.h"
#include "amx_words.h"
#include "int8_quads.h"

namespace moe {
namespace {

// Up to so many tiles of columns and planes are summed in one go: a tile of rows is then read from memory once. 16 rows
// side by side, with no fetching ahead, are what memory likes best (Xeon with AMX, 2 cores: 29.6 GB/s, fetching the
// next 16 rows meanwhile 22.6, plain reading in order 25.3).
constexpr int64_t AMX_INT8_NARROW = 4;

// Left operand: rows of tiles from memory, or a copy of them.
struct Int8Tiles {
  const char* base;
  int64_t stride;

  const char* at(int64_t tile) const { return base + tile * TILE_SIDE * stride; }
};

// Rows that are whole in memory where they lie; others copied, with zeros up to whole tiles.
inline Int8Tiles amx_int8_rows(const Operand& a, int64_t row, int64_t count, int64_t depth) {
  const char* base = a.base + row * a.row_stride;
  if (count % TILE_SIDE == 0 && depth % 64 == 0) return {base, a.row_stride};
  const int64_t height = (count + TILE_SIDE - 1) / TILE_SIDE * TILE_SIDE, pitch = (depth + 63) / 64 * 64 + 64;
  char* copies = static_cast<char*>(row_scratch(static_cast<size_t>(height * pitch)));
  std::memset(copies, 0, static_cast<size_t>(height * pitch));
  for (int64_t r = 0; r < count; ++r)
    std::memcpy(copies + r * pitch, base + r * a.row_stride, static_cast<size_t>(depth));
  return {copies, pitch};
}

// c = the sums times the factors of rows and columns. Sums of PLANES tiles belong to 16 columns.
template <int PLANES>
MOE_INLINE void amx_int8_values(const int32_t (*sums)[TILE_SIDE][TILE_SIDE], int64_t rows, const float* scale,
                                int64_t scale_stride, const float* factor, float* c, int64_t ldc,
                                int64_t columns = LANES) {
  const Vec by_column = load(factor);
  for (int64_t r = 0; r < rows; ++r) {
    Vec value = __builtin_convertvector(load_quads(sums[0][r]), Vec);
    if constexpr (PLANES == 2) value = splat(256.0f) * value + __builtin_convertvector(load_quads(sums[1][r]), Vec);
    store_first(c + r * ldc, value * splat(scale[r * scale_stride]) * by_column, columns);
  }
}

template <int C, int A, int B, bool SIGNED>
MOE_INLINE void amx_int8_dot() {
  if constexpr (SIGNED)
    tile_dot_signed<C, A, B>();
  else
    tile_dot_int8<C, A, B>();
}

// One tile of rows by RIGHT tiles of `width` columns, `pitch` words apart; with two planes every second one is a low
// one. The first lines of the rows at `next` are fetched towards the end. Where much is read on the right, it must not
// wait for memory behind the left, which is therefore fetched some tiles ahead.
template <int PLANES, int RIGHT>
inline void amx_int8_narrow(const Int8Tiles& left, const char* next, const float* right, int64_t width, int64_t pitch,
                            int64_t tiles, int32_t (*sums)[TILE_SIDE][TILE_SIDE]) {
  constexpr int64_t AHEAD = 4;
  const int64_t stride = width * 4, step = TILE_SIDE * width;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t t = 0; t < tiles; ++t, right += step) {
    if (next && t >= tiles - TILE_SIDE) {
      const char* row = next + (t - tiles + TILE_SIDE) * left.stride;
      __builtin_prefetch(row, 0, 2);
      __builtin_prefetch(row + 64, 0, 2);
    }
    if (RIGHT > PLANES && t + AHEAD < tiles)
      for (int64_t r = 0; r < TILE_SIDE; ++r)
        __builtin_prefetch(left.base + (t + AHEAD) * TILE_ROW_BYTES + r * left.stride, 0, 3);
    tile_load<4>(left.base + t * TILE_ROW_BYTES, left.stride);
    tile_load<6>(right, stride);
    tile_dot_signed<0, 4, 6>();
    if constexpr (RIGHT > 1) {
      tile_load<7>(right + pitch, stride);
      amx_int8_dot<1, 4, 7, PLANES == 1>();
    }
    if constexpr (RIGHT > 2) {
      tile_load<6>(right + 2 * pitch, stride);
      tile_dot_signed<2, 4, 6>();
    }
    if constexpr (RIGHT > 3) {
      tile_load<7>(right + 3 * pitch, stride);
      amx_int8_dot<3, 4, 7, PLANES == 1>();
    }
  }
  tile_store<0>(sums[0][0], TILE_ROW_BYTES);
  if constexpr (RIGHT > 1) tile_store<1>(sums[1][0], TILE_ROW_BYTES);
  if constexpr (RIGHT > 2) tile_store<2>(sums[2][0], TILE_ROW_BYTES);
  if constexpr (RIGHT > 3) tile_store<3>(sums[3][0], TILE_ROW_BYTES);
}

// All columns at once. What a tile of rows gives is converted after the next one's products are under way: memory must
// not wait for the end of a sum.
template <int PLANES, int RIGHT>
inline void product_amx_int8_narrow(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth,
                                    const float* b, const float* factor, int64_t plane, int64_t columns) {
  alignas(64) int32_t sums[2][AMX_INT8_NARROW][TILE_SIDE][TILE_SIDE];
  const bool few = columns <= AMX_FEW;
  const int64_t width = few ? columns : TILE_SIDE;
  // The rows of a tile: from `first` on, `apart` from each other.
  struct Done {
    int64_t first, apart, count;
  } before{0, 1, 0};
  int turn = 0;
  const auto finish = [&](const Done& tile, int of) {
    for (int64_t g = 0; g < RIGHT / PLANES; ++g)
      amx_int8_values<PLANES>(sums[of] + g * PLANES, tile.count, a.scale + tile.first * a.scale_stride,
                              tile.apart * a.scale_stride, factor + g * TILE_SIDE, c + tile.first * ldc + g * TILE_SIDE,
                              tile.apart * ldc, few ? columns : LANES);
  };
  for (int64_t m = 0; m < rows;) {
    const int64_t apart = depth % 64 == 0 ? rows_apart(a.row_stride, rows - m) : 1, height = apart * TILE_SIDE;
    for (int64_t i = 0; i < apart; ++i) {
      const Done tile{m + i, apart, std::min(rows - m, TILE_SIDE)};
      const char* next = i + 1 < apart       ? a.base + (m + i + 1) * a.row_stride
                         : m + height < rows ? a.base + (m + height) * a.row_stride
                                             : a.next;
      Int8Tiles left = amx_int8_rows(a, m + i, tile.count, depth);
      left.stride *= apart;
      amx_int8_narrow<PLANES, RIGHT>(left, next, b, width, plane * width, plane / TILE_SIDE, sums[turn]);
      finish(before, 1 - turn);
      before = tile;
      turn = 1 - turn;
    }
    m += height;
  }
  finish(before, 1 - turn);
}

// Two tiles of rows by two on the right: 32 columns, or both planes of 16.
template <int PLANES, int ROWS, int RIGHT>
inline void amx_int8_wide(const Int8Tiles& left, const float* right, int64_t pitch, int64_t tiles,
                          int32_t (*sums)[TILE_SIDE][TILE_SIDE], Ahead& ahead) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t t = 0; t < tiles; ++t, right += TILE_WORDS) {
    ahead.fetch();
    ahead.fetch();
    tile_load<6>(right, TILE_ROW_BYTES);
    tile_load<4>(left.at(0) + t * TILE_ROW_BYTES, left.stride);
    tile_dot_signed<0, 4, 6>();
    if constexpr (ROWS == 2) {
      tile_load<5>(left.at(1) + t * TILE_ROW_BYTES, left.stride);
      tile_dot_signed<2, 5, 6>();
    }
    if constexpr (RIGHT == 2) {
      tile_load<7>(right + pitch, TILE_ROW_BYTES);
      amx_int8_dot<1, 4, 7, PLANES == 1>();
      if constexpr (ROWS == 2) amx_int8_dot<3, 5, 7, PLANES == 1>();
    }
  }
  tile_store<0>(sums[0][0], TILE_ROW_BYTES);
  if constexpr (RIGHT == 2) tile_store<1>(sums[1][0], TILE_ROW_BYTES);
  if constexpr (ROWS == 2) tile_store<2>(sums[2][0], TILE_ROW_BYTES);
  if constexpr (ROWS == 2 && RIGHT == 2) tile_store<3>(sums[3][0], TILE_ROW_BYTES);
}

// For many columns: 32 rows stay in the second-level cache for all of them, and the next 32 are fetched meanwhile.
template <int PLANES>
inline void product_amx_int8_wide(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                                  const float* factor, int64_t plane, int64_t columns) {
  constexpr int64_t HEIGHT = 2 * TILE_SIDE, WIDTH = 2 / PLANES * TILE_SIDE;
  alignas(64) int32_t sums[4][TILE_SIDE][TILE_SIDE];
  const int64_t pitch = plane * TILE_SIDE, tiles = plane / TILE_SIDE;
  for (int64_t m = 0; m < rows; m += HEIGHT) {
    const int64_t count = std::min(rows - m, HEIGHT);
    const Int8Tiles left = amx_int8_rows(a, m, count, depth);
    Ahead ahead = ahead_of<QuantizedFloats<DType::i8>>(a, m + HEIGHT, rows, HEIGHT, depth);
    for (int64_t n = 0; n < columns; n += WIDTH) {
      const float* right = b + n * PLANES * plane;
      const bool two = PLANES == 2 || n + TILE_SIDE < columns;
      if (count > TILE_SIDE)
        two ? amx_int8_wide<PLANES, 2, 2>(left, right, pitch, tiles, sums, ahead)
            : amx_int8_wide<PLANES, 2, 1>(left, right, pitch, tiles, sums, ahead);
      else
        two ? amx_int8_wide<PLANES, 1, 2>(left, right, pitch, tiles, sums, ahead)
            : amx_int8_wide<PLANES, 1, 1>(left, right, pitch, tiles, sums, ahead);
      for (int64_t i = 0; i * TILE_SIDE < count; ++i)
        for (int64_t g = 0; g < WIDTH / TILE_SIDE && n + g * TILE_SIDE < columns; ++g)
          amx_int8_values<PLANES>(sums + 2 * i + g, std::min(count - i * TILE_SIDE, TILE_SIDE),
                                  a.scale + (m + i * TILE_SIDE) * a.scale_stride, a.scale_stride,
                                  factor + n + g * TILE_SIDE, c + (m + i * TILE_SIDE) * ldc + n + g * TILE_SIDE, ldc);
    }
  }
}

template <int PLANES, int RIGHT = AMX_INT8_NARROW>
inline void product_amx_int8_of_width(int64_t right, float* c, int64_t ldc, const Operand& a, int64_t rows,
                                      int64_t depth, const float* b, const float* factor, int64_t plane,
                                      int64_t columns) {
  if (right == RIGHT)
    product_amx_int8_narrow<PLANES, RIGHT>(c, ldc, a, rows, depth, b, factor, plane, columns);
  else if constexpr (RIGHT > PLANES)
    product_amx_int8_of_width<PLANES, RIGHT - PLANES>(right, c, ldc, a, rows, depth, b, factor, plane, columns);
}

template <int PLANES>
inline void product_amx_int8(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                             int64_t ldb, int64_t columns, bool, float*) {
  const int64_t plane = (depth + 63) / 64 * FEW_WORDS, right = (columns + TILE_SIDE - 1) / TILE_SIDE * PLANES;
  const float* factor = b + PLANES * plane * ldb;
  tile_begin(columns <= AMX_FEW ? columns : TILE_SIDE);
  // The rows' factors are wanted when the first sums are done.
  for (int64_t m = 0; a.scale_stride == 1 && m < rows; m += 16) __builtin_prefetch(a.scale + m, 0, 3);
  if (right <= AMX_INT8_NARROW)
    product_amx_int8_of_width<PLANES>(right, c, ldc, a, rows, depth, b, factor, plane, columns);
  else
    product_amx_int8_wide<PLANES>(c, ldc, a, rows, depth, b, factor, plane, columns);
  tile_end();
}

template <int PLANES>
inline void pack_columns_amx_int8(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t, int64_t columns) {
  const int64_t plane = (columns + 63) / 64 * FEW_WORDS, item = item_size(rows.dtype);
  if (count <= AMX_FEW) {
    for (int64_t i = 0; i < count; ++i) {
      const float most = largest(rows.at(i, 0), rows.dtype, columns);
      b[PLANES * plane * count + i] = most / INT8_LARGEST<PLANES>;
      const Vec inverse = splat(most > 0.0f ? INT8_LARGEST<PLANES> / most : 0.0f);
      for (int p = 0; p < PLANES; ++p)
        for (int64_t k = 0; k < columns; k += 64)
          scatter_words(b + (p * plane + k / 4) * count + i, count,
                        int8_words<PLANES, true>(rows.at(i, 0) + k * item, rows.dtype, columns - k, inverse, p));
    }
    return;
  }
  float* factor = b + PLANES * plane * ldb;
  for (int64_t i = 0; i < ldb; i += LANES) {
    Vec inverse[LANES] = {};
    const int64_t height = std::max<int64_t>(0, std::min<int64_t>(count - i, LANES));
    for (int64_t r = 0; r < LANES; ++r) {
      const float most = r < height ? largest(rows.at(i + r, 0), rows.dtype, columns) : 0.0f;
      factor[i + r] = most / INT8_LARGEST<PLANES>;
      inverse[r] = splat(most > 0.0f ? INT8_LARGEST<PLANES> / most : 0.0f);
    }
    for (int p = 0; p < PLANES; ++p)
      for (int64_t k = 0; k < columns; k += 64) {
        Vec block[LANES];
        for (int64_t r = 0; r < LANES; ++r)
          block[r] = r < height ? int8_words<PLANES, true>(rows.at(i + r, 0) + k * item, rows.dtype, columns - k,
                                                           inverse[r], p)
                                : Vec{};
        transpose(block);
        float* to = b + i * PLANES * plane + p * plane * TILE_SIDE + k / 4 * TILE_SIDE;
        for (int64_t r = 0; r < LANES; ++r) store(to + r * TILE_SIDE, block[r]);
      }
  }
}

template <int PLANES>
constexpr Form amx_int8_form() {
  return {DType::f32, 4,
          0,          1,
          PLANES,     TILE_SIDE,
          AMX_FEW,    0,
          0,          product_amx_int8<PLANES>,
          nullptr,    pack_columns_amx_int8<PLANES>,
          nullptr,    nullptr};
}
constexpr Form AMX_INT8 = amx_int8_form<2>();
constexpr Form AMX_INT8_INT8 = amx_int8_form<1>();

}  // namespace
}  // namespace moe
