// Quantized operands as float32, for every instruction set.
#pragma once

#include <algorithm>
#include <array>

#include "rows.h"

namespace moe {
namespace {

// The levels of NF4 (Dettmers et al., QLoRA, 2023, appendix E): quantiles of the normal distribution, 0 being one.
constexpr float NF4_LEVELS[16] = {-1.0f,
                                  -0.6961928009986877f,
                                  -0.5250730514526367f,
                                  -0.39491748809814453f,
                                  -0.28444138169288635f,
                                  -0.18477343022823334f,
                                  -0.09105003625154495f,
                                  0.0f,
                                  0.07958029955625534f,
                                  0.16093020141124725f,
                                  0.24611230194568634f,
                                  0.33791524171829224f,
                                  0.44070982933044434f,
                                  0.5626170039176941f,
                                  0.7229568362236023f,
                                  1.0f};

// Both values of a byte, the first being the high half.
struct Nf4Pairs {
  constexpr Nf4Pairs() {
    for (int i = 0; i < 256; ++i) {
      value[i][0] = NF4_LEVELS[i >> 4];
      value[i][1] = NF4_LEVELS[i & 15];
    }
  }
  float value[256][2] = {};
};
constexpr Nf4Pairs NF4_PAIRS;

inline void copy_nf4(float* dst, const char* codes, int64_t count) {
  const uint8_t* at = reinterpret_cast<const uint8_t*>(codes);
  for (int64_t i = 0; i < count / 2; ++i) std::memcpy(dst + 2 * i, NF4_PAIRS.value[at[i]], 2 * sizeof(float));
}

inline void copy_int8(float* dst, const char* values, int64_t count) {
  const int8_t* at = reinterpret_cast<const int8_t*>(values);
  for (int64_t i = 0; i < count; ++i) dst[i] = static_cast<float>(at[i]);
}

inline void dequantize(float* dst, const Operand& a, int64_t row, int64_t first, int64_t count) {
  const Operand part = a.at(row, first);
  if (a.dtype == DType::i8) {
    copy_int8(dst, part.base, count);
    for (int64_t j = 0; j < count; ++j) dst[j] *= *part.scale;
    return;
  }
  copy_nf4(dst, part.base, count);
  for (int64_t j = 0; j < count; ++j) dst[j] *= part.scale[j / NF4_BLOCK];
}

inline void nested_scales(float* dst, const uint8_t* bytes, int64_t first, int64_t count, const float* nested,
                          const float* code, float offset) {
  constexpr int64_t NESTED_BLOCK = 256;
  // Most often those behind these are wanted next.
  for (int64_t i = 0; i < count; i += 64) __builtin_prefetch(bytes + count + i, 0, 2);
  for (int64_t i = 0; i < count;) {
    const int64_t at = first + i, end = std::min(count, i + NESTED_BLOCK - at % NESTED_BLOCK);
    const float factor = nested[at / NESTED_BLOCK];
#if defined(MOE_ISA_AVX512)
    for (; i + LANES <= end; i += LANES) {
      const __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i)));
      store(dst + i, fma(reinterpret_cast<Vec>(_mm512_i32gather_ps(index, code, 4)), splat(factor), splat(offset)));
    }
#endif
    for (; i < end; ++i) dst[i] = code[bytes[i]] * factor + offset;
  }
}

// Kinds of panel.h's product whose runs end where a factor does.
template <DType TYPE>
struct QuantizedFloats : FloatWords {
  static constexpr bool SCALED = true;
  static constexpr int64_t SCALE_STEP = TYPE == DType::nf4 ? 1 : 0;
  static_assert(TYPE != DType::nf4 || RUN == NF4_BLOCK, "a run has one factor");

  static bool direct(const Operand&, int64_t) { return false; }
  static Left left(const Operand& a, int64_t row, int64_t k) {
    return {nullptr, 0, a.at(row, k).scale, a.scale_stride, 0};
  }
  static Ahead ahead(const Operand& a, int64_t row, int64_t rows, int64_t depth) {
    return {a.at(row, 0).base, rows, bytes_of(TYPE, a.row_stride), bytes_of(TYPE, depth)};
  }
  static void copy_row(float* words, const Operand& a, int64_t row, int64_t k, int64_t count) {
    TYPE == DType::nf4 ? copy_nf4(words, a.at(row, k).base, count) : copy_int8(words, a.at(row, k).base, count);
  }
};

template <DType TYPE>
inline void product_quantized_floats(float* c, int64_t ldc, const Operand& a, int64_t rows, int64_t depth,
                                     const float* b, int64_t ldb, int64_t columns, bool accumulate, float* scratch) {
  panel_by_rows<QuantizedFloats<TYPE>>(c, ldc, a, rows, depth, b, ldb, columns, accumulate, scratch);
}

// max |x| of a row.
inline float largest(const char* row, DType dtype, int64_t count) {
  Vec most = {};
  // A NaN shall win.
  const auto take = [&](Vec x) {
    const Vec size = reinterpret_cast<Vec>(reinterpret_cast<VecU>(x) & 0x7fffffffu);
    most = most > size ? most : size;
  };
  int64_t j = 0;
  for (; j + LANES <= count; j += LANES) take(load_as(row + j * item_size(dtype), dtype));
  if (j < count) take(load_first_as(row + j * item_size(dtype), dtype, count - j));
  float lane[LANES], result = 0.0f;
  store(lane, most);
  for (int i = 0; i < LANES; ++i) result = result > lane[i] ? result : lane[i];
  return result;
}

// To nearest, ties to even, for |x| below 2^22.
MOE_INLINE Vec round_even(Vec x) {
  const Vec shift = splat(12582912.0f);  // 1.5 · 2^23
  return (x + shift) - shift;
}

// Columns whose values are what int8 with one factor a column can hold.
inline void pack_columns_rounded(float* b, int64_t ldb, const Rows& rows, int64_t count, int64_t first_column,
                                 int64_t columns) {
  gather_transposed(b, ldb, rows, count, first_column, columns);
  for (int64_t n = 0; n < count; n += LANES) {
    Vec most = {};
    for (int64_t k = 0; k < columns; ++k) {
      const Vec size = reinterpret_cast<Vec>(reinterpret_cast<VecU>(load(b + k * ldb + n)) & 0x7fffffffu);
      most = most > size ? most : size;
    }
    const Vec factor = most / splat(127.0f);
    const Vec inverse = most > splat(0.0f) ? splat(127.0f) / most : Vec{};
    for (int64_t k = 0; k < columns; ++k) {
      float* at = b + k * ldb + n;
      store(at, round_even(load(at) * inverse) * factor);
    }
  }
}

constexpr Form FLOAT_NF4 = {DType::f32,
                            FloatWords::UNIT,
                            FloatWords::DEPTH,
                            1,
                            1,
                            TILE_ROWS,
                            0,
                            0,
                            PANEL_SCRATCH<FloatWords>,
                            product_quantized_floats<DType::nf4>,
                            nullptr,
                            gather_transposed,
                            pack_rows_floats,
                            pack_block_floats<0>};

constexpr Form FLOAT_INT8 = {DType::f32,
                             FloatWords::UNIT,
                             FloatWords::DEPTH,
                             1,
                             1,
                             TILE_ROWS,
                             0,
                             0,
                             PANEL_SCRATCH<FloatWords>,
                             product_quantized_floats<DType::i8>,
                             nullptr,
                             gather_transposed,
                             pack_rows_floats,
                             pack_block_floats<0>};

constexpr Form FLOAT_INT8_INT8 = {DType::f32,
                                  FloatWords::UNIT,
                                  0,
                                  1,
                                  1,
                                  TILE_ROWS,
                                  0,
                                  0,
                                  PANEL_SCRATCH<FloatWords>,
                                  product_quantized_floats<DType::i8>,
                                  nullptr,
                                  pack_columns_rounded,
                                  nullptr,
                                  nullptr};

}  // namespace
}  // namespace moe
