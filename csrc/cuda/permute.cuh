// What one thread of the permute kernels does, callable on the host too: the tests walk all threads without a GPU.
// Rows are N (sorted by expert), tokens T, slots T*K. Storage is int32, addresses are computed in int64.
#pragma once

#include <cstdint>

#include "cuda/numbers.cuh"

namespace moe::cuda {

// Rows of a tensor; the stride is in elements.
template <typename T>
struct Rows {
  T* data;
  int64_t stride;

  MOE_HOST_DEVICE T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};

// out[n] = x[row_token[n]] for the rows that an expert owns, zero for the others: a copy, in any unit.
template <typename Unit>
struct PermuteArgs {
  Rows<const Unit> x;
  Rows<Unit> out;
  const int32_t* row_token;
  const int32_t* owned_rows;  // offsets + E
  int64_t rows;
  int64_t columns;  // in units
};

template <typename Unit>
MOE_HOST_DEVICE void permute_thread(const PermuteArgs<Unit>& a, int64_t row, int64_t column) {
  if (row >= a.rows || column >= a.columns) return;
  Unit unit = {};
  if (row < *a.owned_rows) unit = *a.x.at(a.row_token[row], column);
  *a.out.at(row, column) = unit;
}

// out[t] = sum over k, in order, of weights[t, k] * rows[slot_row[t, k]], in float32.
template <typename T>
struct UnpermuteArgs {
  Rows<const T> rows;
  Rows<T> out;
  const int32_t* slot_row;
  const float* weights;  // null for ones
  int64_t tokens;
  int64_t experts_per_token;
  int64_t columns;  // in vectors
};

template <typename T, int WIDTH>
MOE_HOST_DEVICE void unpermute_thread(const UnpermuteArgs<T>& a, int64_t token, int64_t vector) {
  using Vector = Pack<T, WIDTH>;
  if (token >= a.tokens || vector >= a.columns) return;
  float sum[WIDTH] = {};
  const int64_t first = token * a.experts_per_token;
  // Unrolled so that four independent row loads are in flight; the additions keep their order.
#pragma unroll 4
  for (int64_t slot = first; slot < first + a.experts_per_token; ++slot) {
    const int32_t row = a.slot_row[slot];
    // A slot of no expert contributes nothing, even where its weight is NaN.
    if (row < 0) continue;
    const float weight = a.weights ? a.weights[slot] : 1.0f;
    const Vector v = *reinterpret_cast<const Vector*>(a.rows.at(row, vector * WIDTH));
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] += weight * to_float(v.value[i]);
  }
  Vector result;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) result.value[i] = from_float<T>(sum[i]);
  *reinterpret_cast<Vector*>(a.out.at(token, vector * WIDTH)) = result;
}

// grad_rows[slot_row[t, k]] = weights[t, k] * grad[t], and grad_weights[t, k] = grad[t] . rows[slot_row[t, k]].
template <typename T>
struct UnpermuteBackwardArgs {
  Rows<const T> grad;
  Rows<const T> rows;
  Rows<T> grad_rows;
  const int32_t* slot_row;
  const float* weights;  // null for ones, and then no gradient is asked for
  float* grad_weights;
  int64_t slots;
  int64_t experts_per_token;
  int64_t columns;  // in vectors
};

// One thread's share of a slot: the vectors `thread`, `thread + threads`, … Returns its part of the dot product.
template <typename T, int WIDTH>
MOE_HOST_DEVICE float unpermute_backward_thread(const UnpermuteBackwardArgs<T>& a, int64_t slot, int thread,
                                                int threads) {
  using Vector = Pack<T, WIDTH>;
  const int32_t row = a.slot_row[slot];
  if (row < 0) return 0.0f;
  const int64_t token = slot / a.experts_per_token;
  const float weight = a.weights ? a.weights[slot] : 1.0f;
  float dot = 0.0f;
  for (int64_t vector = thread; vector < a.columns; vector += threads) {
    const Vector g = *reinterpret_cast<const Vector*>(a.grad.at(token, vector * WIDTH));
    Vector result;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) result.value[i] = from_float<T>(weight * to_float(g.value[i]));
    *reinterpret_cast<Vector*>(a.grad_rows.at(row, vector * WIDTH)) = result;
    if (a.weights) {
      const Vector r = *reinterpret_cast<const Vector*>(a.rows.at(row, vector * WIDTH));
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) dot += to_float(g.value[i]) * to_float(r.value[i]);
    }
  }
  return dot;
}

}  // namespace moe::cuda
