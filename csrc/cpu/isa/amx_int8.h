// int8 weights on AMX: signed bytes of the weight times unsigned bytes of the activations, as in int8_quads.h.
#pragma once

#include "amx_tile.h"
#include "int8_quads.h"

namespace moe {
namespace {

// Two tiles of rows by one of columns, in each plane: sums [plane][row][column].
template <int PLANES>
inline void amx_int8_block(const char* const* left, const int64_t* stride, const char* tail, int64_t words,
                           const float* b, int64_t plane_words, int64_t ldb, int32_t (*sums)[2 * TILE_SIDE][TILE_SIDE],
                           Ahead& ahead) {
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  for (int64_t w = 0; w < words; w += TILE_SIDE) {
    for (int i = 0; i < 2 * TILE_SIDE; ++i) ahead.fetch();
    const bool last = tail && w + TILE_SIDE >= words;
    tile_load<4>(last ? tail : left[0] + w * 4, last ? TILE_ROW_BYTES : stride[0]);
    tile_load<5>(last ? tail + TILE_SIDE * TILE_ROW_BYTES : left[1] + w * 4, last ? TILE_ROW_BYTES : stride[1]);
    tile_load<6>(b + w * ldb, ldb * 4);
    tile_dot_int8<0, 4, 6>();
    tile_dot_int8<1, 5, 6>();
    if constexpr (PLANES == 2) {
      tile_load<7>(b + (plane_words + w) * ldb, ldb * 4);
      tile_dot_int8<2, 4, 7>();
      tile_dot_int8<3, 5, 7>();
    }
  }
  tile_store<0>(sums[0][0], TILE_ROW_BYTES);
  tile_store<1>(sums[0][TILE_SIDE], TILE_ROW_BYTES);
  if constexpr (PLANES == 2) {
    tile_store<2>(sums[1][0], TILE_ROW_BYTES);
    tile_store<3>(sums[1][TILE_SIDE], TILE_ROW_BYTES);
  }
}

template <int PLANES>
inline void product_amx_int8(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth, const float* b,
                             int64_t ldb, int64_t columns, bool, float*) {
  tile_begin();
  const int64_t plane = (depth + 63) / 64 * FEW_WORDS, height = 2 * TILE_SIDE;
  const float* factor = b + PLANES * plane * ldb;
  const VecI ones = splat_int(0x01010101);
  alignas(64) int32_t sums[2][2 * TILE_SIDE][TILE_SIDE];
  alignas(64) char tail[2 * TILE_SIDE * TILE_ROW_BYTES];
  for (int64_t m = 0; m < rows; m += height) {
    const int64_t count = std::min(rows - m, height);
    Ahead ahead = ahead_of<QuantizedFloats<DType::i8>>(a, m + height, rows, height, depth);
    int32_t weights[2 * TILE_SIDE] = {};
    for (int64_t r = 0; r < count; ++r) {
      const char* row = a.base + (m + r) * a.row_stride;
      VecI sum = {};
      for (int64_t k = 0; k < depth; k += 64) sum = dot_quad(ones, load_first_quads(row + k, depth - k), sum);
      weights[r] = sum_lanes(sum);
    }
    const char* left[2];
    int64_t stride[2];
    for (int64_t t = 0; t < 2; ++t) {
      const int64_t there = std::min(count - t * TILE_SIDE, TILE_SIDE);
      left[t] = a.base + (m + t * TILE_SIDE) * a.row_stride;
      stride[t] = a.row_stride;
      if (there == TILE_SIDE) continue;
      // Rows that are no whole tile: a copy, or, with none at all, the first tile again.
      if (there <= 0) {
        left[t] = left[0];
        stride[t] = stride[0];
        continue;
      }
      char* copies = static_cast<char*>(row_scratch(static_cast<size_t>(TILE_SIDE * plane * 4)));
      std::memset(copies, 0, static_cast<size_t>(TILE_SIDE * plane * 4));
      for (int64_t r = 0; r < there; ++r)
        std::memcpy(copies + r * plane * 4, left[t] + r * a.row_stride, static_cast<size_t>(depth));
      left[t] = copies;
      stride[t] = plane * 4;
    }
    const int64_t begin = depth / 64 * 64, over = depth - begin;
    if (over > 0) {
      std::memset(tail, 0, sizeof tail);
      for (int64_t r = 0; r < height; ++r)
        std::memcpy(tail + r * TILE_ROW_BYTES, left[r / TILE_SIDE] + r % TILE_SIDE * stride[r / TILE_SIDE] + begin,
                    static_cast<size_t>(over));
    }
    for (int64_t n = 0; n < columns; n += TILE_SIDE) {
      amx_int8_block<PLANES>(left, stride, over > 0 ? tail : nullptr, plane, b + n, plane, ldb, sums, ahead);
      for (int64_t r = 0; r < count; ++r) {
        const VecI high = load_quads(sums[0][r]) - splat_int(128 * weights[r]);
        Vec value = __builtin_convertvector(high, Vec);
        if (PLANES == 2) value = splat(256.0f) * value + __builtin_convertvector(load_quads(sums[1][r]), Vec);
        store(c + (m + r) * ldc + n, value * splat(a.scale[(m + r) * a.scale_stride]) * load(factor + n));
      }
    }
  }
  tile_end();
}

template <int PLANES>
constexpr Form amx_int8_form() {
  return {DType::f32, 4,
          0,          1,
          PLANES,     TILE_SIDE,
          0,          0,
          0,          product_amx_int8<PLANES>,
          nullptr,    pack_columns_int8<PLANES, 0>,
          nullptr,    nullptr};
}
constexpr Form AMX_INT8 = amx_int8_form<2>();
constexpr Form AMX_INT8_INT8 = amx_int8_form<1>();

}  // namespace
}  // namespace moe
