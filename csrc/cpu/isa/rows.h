// Moving rows: gather, transpose, convert, and the sums along rows.
#pragma once

#include "floats.h"

namespace moe {
namespace {

inline void load_row(float* dst, const char* src, DType dtype, int64_t count) { copy_row(dst, src, dtype, count); }

inline void store_row(char* dst, DType dtype, const float* src, int64_t count) {
  const int64_t item = item_size(dtype);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store_as(dst + i * item, dtype, load(src + i));
  if (i < count) store_first_as(dst + i * item, dtype, load_first(src + i, count - i), count - i);
}

inline void pack_rows_floats(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column,
                             int64_t columns) {
  const int64_t item = item_size(rows.dtype);
  for (int64_t i = 0; i < count; ++i) {
    const char* src = rows.at(i, first_column);
    float* to = b + i * ldb;
    const Vec factor = splat(rows.scale ? rows.scale[i] : 1.0f);
    int64_t j = 0;
    for (; j + LANES <= columns; j += LANES) store(to + j, load_as(src + j * item, rows.dtype) * factor);
    if (j < columns) {
      store_first(to + j, load_first_as(src + j * item, rows.dtype, columns - j) * factor, columns - j);
      j = columns;
    }
    for (; j < ldb; ++j) to[j] = 0.0f;
  }
}

inline void gather_transposed(float* dst, int64_t ld, const Rows& rows, int64_t count, int64_t first_column,
                              int64_t columns) {
  const int64_t item = item_size(rows.dtype);
  if (ld % LANES != 0) {
    for (int64_t i = 0; i < count; ++i) {
      const char* src = rows.at(i, first_column);
      const Vec factor = splat(rows.scale ? rows.scale[i] : 1.0f);
      for (int64_t j = 0; j < columns; j += LANES) {
        const int64_t width = columns - j < LANES ? columns - j : LANES;
        float lane[LANES];
        store(lane, load_first_as(src + j * item, rows.dtype, width) * factor);
        for (int64_t c = 0; c < width; ++c) dst[(j + c) * ld + i] = lane[c];
      }
    }
    return;
  }
  for (int64_t i = 0; i < ld; i += LANES) {
    const char* src[LANES];
    Vec factor[LANES];
    const int64_t height = count - i < LANES ? (count - i > 0 ? count - i : 0) : LANES;
    for (int64_t r = 0; r < height; ++r) {
      src[r] = rows.at(i + r, first_column);
      factor[r] = splat(rows.scale ? rows.scale[i + r] : 1.0f);
    }
    for (int64_t j = 0; j < columns; j += LANES) {
      const int64_t width = columns - j < LANES ? columns - j : LANES;
      Vec block[LANES];
      if (height == LANES && width == LANES) {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) block[r] = load_as(src[r] + j * item, rows.dtype) * factor[r];
      } else {
        for (int64_t r = 0; r < LANES; ++r)
          block[r] = r < height ? load_first_as(src[r] + j * item, rows.dtype, width) * factor[r] : Vec{};
      }
      transpose(block);
      if (width == LANES) {
#pragma GCC unroll 16
        for (int c = 0; c < LANES; ++c) store(dst + (j + c) * ld + i, block[c]);
      } else {
        for (int64_t c = 0; c < width; ++c) store(dst + (j + c) * ld + i, block[c]);
      }
    }
  }
}

inline void scatter_transposed(char* out, DType dtype, int64_t out_stride, const float* src, int64_t ld, int64_t count,
                               int64_t columns) {
  const int64_t item = item_size(dtype);
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t height = count - i < LANES ? count - i : LANES;
    for (int64_t j = 0; j < columns; j += LANES) {
      const int64_t width = columns - j < LANES ? columns - j : LANES;
      char* to = out + (i * out_stride + j) * item;
      Vec block[LANES];
      if (height == LANES && width == LANES) {
#pragma GCC unroll 16
        for (int c = 0; c < LANES; ++c) block[c] = load(src + (j + c) * ld + i);
        transpose(block);
#pragma GCC unroll 16
        for (int r = 0; r < LANES; ++r) store_as(to + r * out_stride * item, dtype, block[r]);
        continue;
      }
      for (int64_t c = 0; c < LANES; ++c) block[c] = c < width ? load_first(src + (j + c) * ld + i, height) : Vec{};
      transpose(block);
      for (int64_t r = 0; r < height; ++r) store_first_as(to + r * out_stride * item, dtype, block[r], width);
    }
  }
}

inline void pack_columns_floats(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column,
                                int64_t columns) {
  if (count > FEW_COLUMNS) {
    gather_transposed(b, ldb, rows, count, first_column, columns);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    const Vec factor = splat(rows.scale ? rows.scale[i] : 1.0f);
    for (int64_t j = 0; j < columns; j += LANES) {
      const int64_t width = columns - j < LANES ? columns - j : LANES;
      store_first(b + few_word(count, j, i), load_first_as(rows.at(i, first_column + j), rows.dtype, width) * factor,
                  width);
    }
  }
}

template <int64_t FEW>
inline void pack_block_floats(float* b, int64_t ldb, int64_t first, const float* src, int64_t ld, int64_t depth,
                              int64_t columns) {
  if (columns > FEW) {
    std::memcpy(b + first * ldb, src, static_cast<size_t>(ld * depth) * sizeof(float));
    return;
  }
  for (int64_t n = 0; n < columns; ++n)
    for (int64_t k = 0; k < depth; ++k) b[few_word(columns, first + k, n)] = src[k * ld + n];
}

inline void add_scaled(float* dst, float factor, const char* src, DType dtype, int64_t count) {
  const int64_t item = item_size(dtype);
  const Vec by = splat(factor);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(dst + i, fma(by, load_as(src + i * item, dtype), load(dst + i)));
  if (i < count) {
    const int64_t left = count - i;
    store_first(dst + i, fma(by, load_first_as(src + i * item, dtype, left), load_first(dst + i, left)), left);
  }
}

inline float dot(const char* a, DType a_dtype, const char* b, DType b_dtype, int64_t count) {
  const int64_t a_item = item_size(a_dtype), b_item = item_size(b_dtype);
  Vec acc[4] = {};
  int64_t i = 0;
  for (; i + 4 * LANES <= count; i += 4 * LANES) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const int64_t at = i + v * LANES;
      acc[v] = fma(load_as(a + at * a_item, a_dtype), load_as(b + at * b_item, b_dtype), acc[v]);
    }
  }
  for (; i < count; i += LANES) {
    const int64_t left = count - i < LANES ? count - i : LANES;
    acc[0] = fma(load_first_as(a + i * a_item, a_dtype, left), load_first_as(b + i * b_item, b_dtype, left), acc[0]);
  }
  return sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
}

inline void add_products(float* acc, const float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t left = count - i < LANES ? count - i : LANES;
    const Vec sum = load_first(acc + i, left), value = load_first(a + i, left);
    store_first(acc + i, b ? fma(value, load_first(b + i, left), sum) : sum + value, left);
  }
}

inline void multiply(float* out, const float* a, const float* b, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(out + i, load(a + i) * load(b + i));
  for (; i < count; ++i) out[i] = a[i] * b[i];
}

inline void add_value(float* row, float value, int64_t count) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) store(row + i, load(row + i) + splat(value));
  for (; i < count; ++i) row[i] += value;
}

}  // namespace
}  // namespace moe
