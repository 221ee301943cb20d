// What becomes of the sums of a product over expert rows: eight output elements at a time, read from float32 sums and
// written as 16 bytes. The choice between the forms is made at run time: three kernels in place of one would triple the
// compilation.
#pragma once

#include <cstdint>

#include "cuda/activation.cuh"
#include "cuda/numbers.cuh"
#include "cuda/schedule.h"
#include "cuda/warp_tile.cuh"

namespace moe::cuda {

enum class Form : int32_t {
  linear,             // out = scale · (sum + bias)
  activate,           // pre = sum + bias, out = act(pre)
  activate_backward,  // sum = d act; from pre: out = scale · act, grad_pre = scale · sum · act'(pre), dot = Σ sum · act
};

constexpr int VECTOR = 8;
// Columns of a warp's patch of sums where it gives a part of a dot product.
constexpr int DOT_COLUMNS = 32;

template <typename T>
struct ExpertOutput {
  using Vector = Pack<T, VECTOR>;

  Form form;
  Activation activation;
  float limit;  // see gated
  bool is_gated;
  bool interleaved;    // gate and up columns alternate; else the gate's come first
  int64_t columns;     // of out, a multiple of 8
  T* out;              // (N, columns)
  float* unrounded;    // (N, columns): takes a linear output in place of `out`, where it is not null
  T* pre;              // (N, 2 columns), or (N, columns) without a gate; null where it is not wanted
  T* grad_pre;         // of pre's shape
  const T* bias;       // (E, as wide as the sums) or null
  const float* scale;  // (N) or null
  float* dot;          // (N, dots) or null: parts of Σ over the columns, DOT_COLUMNS each
  int64_t dots;

  MOE_DEVICE int64_t width() const { return is_gated ? 2 * columns : columns; }
  // How many of the sums one vector of outputs is made of.
  MOE_DEVICE int sums_per_vector() const { return form == Form::activate && is_gated ? 2 * VECTOR : VECTOR; }

  // Zeros for a row that no expert owns.
  MOE_DEVICE void zero(int64_t row, int64_t column) const {
    if (form == Form::linear && unrounded) {
      const float zeros[VECTOR] = {};
      return write_unrounded(row, column, zeros);
    }
    const Vector nothing = {};
    *at(out, columns, row, column) = nothing;
    if (form == Form::linear) return;
    T* wide = form == Form::activate ? pre : grad_pre;
    if (!wide) return;
    *at(wide, width(), row, is_gated ? 2 * column : column) = nothing;
    if (is_gated) *at(wide, width(), row, 2 * column + VECTOR) = nothing;
  }

  // Eight outputs from `column` on, from the sums of their vector: for gated activations the gate's eight and then
  // up's, or pairs where they are interleaved. Returns their part of the dot product.
  MOE_DEVICE float write(int32_t expert, int64_t row, int64_t column, const float* sums) const {
    if (form == Form::linear) return write_linear(expert, row, column, sums), 0.0f;
    if (form == Form::activate) return write_activation(expert, row, column, sums), 0.0f;
    return write_backward(row, column, sums);
  }

 private:
  static MOE_DEVICE Vector* at(T* base, int64_t stride, int64_t row, int64_t column) {
    return reinterpret_cast<Vector*>(base + row * stride + column);
  }
  static MOE_DEVICE const Vector* at(const T* base, int64_t stride, int64_t row, int64_t column) {
    return reinterpret_cast<const Vector*>(base + row * stride + column);
  }

  MOE_DEVICE void add_bias(float (&v)[VECTOR], int32_t expert, int64_t column) const {
    if (!bias) return;
    const Vector b = *at(bias, form == Form::linear ? columns : width(), expert, column);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) v[i] += to_float(b.value[i]);
  }

  static MOE_DEVICE void read_sums(float (&v)[VECTOR], const float* sums) {
    const float4 low = *reinterpret_cast<const float4*>(sums), high = *reinterpret_cast<const float4*>(sums + 4);
    v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
    v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
  }

  static MOE_DEVICE Vector round(const float (&v)[VECTOR]) {
    Vector result;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) result.value[i] = from_float<T>(v[i]);
    return result;
  }

  // The two vectors of a pair of eight gates and eight ups, at the columns where they lie.
  MOE_DEVICE int64_t first_column(int64_t column) const { return interleaved ? 2 * column : column; }
  MOE_DEVICE int64_t second_column(int64_t column) const {
    return interleaved ? 2 * column + VECTOR : column + columns;
  }
  MOE_DEVICE void split(const float (&first)[VECTOR], const float (&second)[VECTOR], float (&gate)[VECTOR],
                        float (&up)[VECTOR]) const {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      const int even = 2 * i % VECTOR, odd = even + 1;
      gate[i] = interleaved ? (i < VECTOR / 2 ? first[even] : second[even]) : first[i];
      up[i] = interleaved ? (i < VECTOR / 2 ? first[odd] : second[odd]) : second[i];
    }
  }
  MOE_DEVICE void join(const float (&gate)[VECTOR], const float (&up)[VECTOR], float (&first)[VECTOR],
                       float (&second)[VECTOR]) const {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
      const int low = i / 2, high = VECTOR / 2 + i / 2;
      first[i] = interleaved ? (i % 2 ? up[low] : gate[low]) : gate[i];
      second[i] = interleaved ? (i % 2 ? up[high] : gate[high]) : up[i];
    }
  }

  MOE_DEVICE void write_linear(int32_t expert, int64_t row, int64_t column, const float* sums) const {
    float v[VECTOR];
    read_sums(v, sums);
    add_bias(v, expert, column);
    const float factor = scale ? scale[row] : 1.0f;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) v[i] *= factor;
    if (unrounded) return write_unrounded(row, column, v);
    *at(out, columns, row, column) = round(v);
  }

  MOE_DEVICE void write_unrounded(int64_t row, int64_t column, const float (&v)[VECTOR]) const {
    float4* to = reinterpret_cast<float4*>(unrounded + row * columns + column);
    to[0] = make_float4(v[0], v[1], v[2], v[3]);
    to[1] = make_float4(v[4], v[5], v[6], v[7]);
  }

  MOE_DEVICE void write_activation(int32_t expert, int64_t row, int64_t column, const float* sums) const {
    float first[VECTOR];
    read_sums(first, sums);
    if (!is_gated) {
      add_bias(first, expert, column);
      if (pre) *at(pre, columns, row, column) = round(first);
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) first[i] = curve(activation, first[i]).value;
      *at(out, columns, row, column) = round(first);
      return;
    }
    float second[VECTOR], gate[VECTOR], up[VECTOR];
    read_sums(second, sums + VECTOR);
    add_bias(first, expert, first_column(column));
    add_bias(second, expert, second_column(column));
    if (pre) {
      *at(pre, width(), row, first_column(column)) = round(first);
      *at(pre, width(), row, second_column(column)) = round(second);
    }
    split(first, second, gate, up);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) gate[i] = gated(activation, limit, gate[i], up[i]).act;
    *at(out, columns, row, column) = round(gate);
  }

  MOE_DEVICE void read_pre(float (&v)[VECTOR], int64_t row, int64_t column) const {
    const Vector p = *at(pre, width(), row, column);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) v[i] = to_float(p.value[i]);
  }

  MOE_DEVICE float write_backward(int64_t row, int64_t column, const float* sums) const {
    const float factor = scale[row];
    float part = 0.0f, grad[VECTOR], act[VECTOR], first[VECTOR];
    read_sums(grad, sums);
    read_pre(first, row, first_column(column));
    if (is_gated) {
      float second[VECTOR], gate[VECTOR], up[VECTOR];
      read_pre(second, row, second_column(column));
      split(first, second, gate, up);
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) {
        const Gated g = gated(activation, limit, gate[i], up[i]);
        part += grad[i] * g.act;
        act[i] = factor * g.act;
        gate[i] = factor * grad[i] * g.gate_slope;
        up[i] = factor * grad[i] * g.up_slope;
      }
      join(gate, up, first, second);
      *at(grad_pre, width(), row, second_column(column)) = round(second);
    } else {
#pragma unroll
      for (int i = 0; i < VECTOR; ++i) {
        const Curve c = curve(activation, first[i]);
        part += grad[i] * c.value;
        act[i] = factor * c.value;
        first[i] = factor * grad[i] * c.slope;
      }
    }
    *at(grad_pre, width(), row, first_column(column)) = round(first);
    *at(out, columns, row, column) = round(act);
    return part;
  }
};

// A warp writes the outputs of its patch of ROWS x COLUMNS sums in shared memory, of which `rows` are an expert's.
template <int ROWS, int COLUMNS, typename T>
MOE_DEVICE void write_patch(const ExpertOutput<T>& output, int32_t expert, int64_t first_row, int rows,
                            int64_t first_column, const float* patch, int lane) {
  constexpr int STRIDE = WarpPatch<ROWS, COLUMNS>::STRIDE;
  const int taken = output.sums_per_vector(), vectors = COLUMNS / taken;
  for (int unit = lane; unit < ROWS * vectors; unit += WARP) {
    const int r = unit / vectors, v = unit % vectors;
    float part = 0.0f;
    if (r < rows && first_column + v * VECTOR < output.columns)
      part = output.write(expert, first_row + r, first_column + v * VECTOR, patch + r * STRIDE + v * taken);
    if (!output.dot) continue;
    // The vectors of a row are in neighbouring lanes.
    for (int step = 1; step < vectors; step *= 2) part += __shfl_xor_sync(0xffffffffu, part, step);
    const int64_t which = first_column / DOT_COLUMNS;
    if (v == 0 && r < rows && which < output.dots) output.dot[(first_row + r) * output.dots + which] = part;
  }
}

// Zeros for a tile of `block_columns` columns of sums whose rows no expert owns.
template <typename T>
MOE_DEVICE void zero_tile(const ExpertOutput<T>& output, const Tile& tile, int block_columns, int thread, int threads) {
  const int vectors = block_columns / output.sums_per_vector();
  for (int unit = thread; unit < tile.rows * vectors; unit += threads) {
    const int64_t column = (int64_t{tile.column_block} * vectors + unit % vectors) * VECTOR;
    if (column < output.columns) output.zero(tile.first_row + unit / vectors, column);
  }
}

}  // namespace moe::cuda
