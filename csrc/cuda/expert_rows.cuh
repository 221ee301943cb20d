// Sums over expert rows that are no matrix products: each has a fixed order and reads every element once.
#pragma once

#include "cuda/numbers.cuh"
#include "cuda/schedule.h"

namespace moe::cuda {

constexpr int ROW_THREADS = 256;
constexpr int ROW_VECTOR = 8;

// row_weight[slot_row[s]] = weights[s]; rows that no slot owns are left alone.
__global__ void __launch_bounds__(ROW_THREADS)
    row_weight_kernel(const int32_t* slot_row, const float* weights, int64_t slots, float* row_weight) {
  const int64_t slot = int64_t{blockIdx.x} * ROW_THREADS + threadIdx.x;
  if (slot < slots && slot_row[slot] >= 0) row_weight[slot_row[slot]] = weights[slot];
}

// The gradient of a slot's routing weight: its row's parts and, with a bias, grad[token] · bias[expert].
template <typename T>
struct SlotGradient {
  const float* dots;  // (N, parts)
  int64_t parts;
  const int32_t* slot_row;  // (T, K)
  int64_t slots;
  int64_t experts_per_token;
  const T* bias;  // (E, columns) or null
  const T* grad;  // (T, columns)
  int64_t grad_stride;
  int64_t columns;
  const int32_t* offsets;
  int32_t experts;
  float* out;  // (T, K)

  MOE_DEVICE int32_t expert_of(int64_t row) const {
    // The last expert that begins at or before the row: those without rows begin where the next one does.
    int32_t low = 0, high = experts;
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      (offsets[middle] <= row ? low : high) = middle;
    }
    return low;
  }
};

// A warp a slot.
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS) slot_gradient_kernel(const SlotGradient<T> p) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t slot = (int64_t{blockIdx.x} * ROW_THREADS + threadIdx.x) / 32;
  if (slot >= p.slots) return;
  const int64_t row = p.slot_row[slot];
  float sum = 0.0f;
  if (row >= 0) {
    for (int64_t i = lane; i < p.parts; i += 32) sum += p.dots[row * p.parts + i];
    if (p.bias) {
      const T* bias = p.bias + p.expert_of(row) * p.columns;
      const T* grad = p.grad + slot / p.experts_per_token * p.grad_stride;
      for (int64_t i = lane; i < p.columns; i += 32) sum += to_float(grad[i]) * to_float(bias[i]);
    }
  }
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane == 0) p.out[slot] = sum;
}

// out[e] = Σ over the expert's rows of scale[n] · x[row_token[n]].
template <typename T>
struct ColumnSums {
  const T* x;
  int64_t stride;
  const int32_t* row_token;  // (N) or null
  const float* scale;        // (N) or null
  const int32_t* offsets;
  T* out;  // (E, columns)
  int64_t columns;
};

constexpr int SUM_LANES = 32;                        // threads side by side, each with a vector of columns
constexpr int SUM_RUNS = ROW_THREADS / SUM_LANES;    // threads one below the other, each with every eighth row
constexpr int SUM_COLUMNS = SUM_LANES * ROW_VECTOR;  // of a block

template <typename T>
__global__ void __launch_bounds__(ROW_THREADS) column_sums_kernel(const ColumnSums<T> p) {
  MOE_SHARED(float, partial, [SUM_RUNS][SUM_COLUMNS]);
  const int lane = static_cast<int>(threadIdx.x) % SUM_LANES, run = static_cast<int>(threadIdx.x) / SUM_LANES;
  const int64_t expert = blockIdx.x, column = int64_t{blockIdx.y} * SUM_COLUMNS + lane * ROW_VECTOR;
  float sum[ROW_VECTOR] = {};
  if (column < p.columns)
    for (int64_t n = p.offsets[expert] + run; n < p.offsets[expert + 1]; n += SUM_RUNS) {
      const int64_t row = p.row_token ? p.row_token[n] : n;
      const float factor = p.scale ? p.scale[n] : 1.0f;
      const auto v = *reinterpret_cast<const Pack<T, ROW_VECTOR>*>(p.x + row * p.stride + column);
#pragma unroll
      for (int i = 0; i < ROW_VECTOR; ++i) sum[i] += factor * to_float(v.value[i]);
    }
#pragma unroll
  for (int i = 0; i < ROW_VECTOR; ++i) partial[run][lane * ROW_VECTOR + i] = sum[i];
  __syncthreads();
  const int64_t own = int64_t{blockIdx.y} * SUM_COLUMNS + threadIdx.x;
  if (own >= p.columns) return;
  float total = 0.0f;
  for (int i = 0; i < SUM_RUNS; ++i) total += partial[i][threadIdx.x];
  p.out[expert * p.columns + own] = from_float<T>(total);
}
static_assert(SUM_COLUMNS == ROW_THREADS, "a thread adds the runs of one column");

// out[t] = Σ rows[order[i]] for starts[t] <= i < starts[t + 1].
template <typename T>
struct TokenSums {
  const T* rows;
  int64_t stride;
  const int64_t* order;   // (N)
  const int64_t* starts;  // (T + 1)
  T* out;                 // (T, columns)
  int64_t columns;
};

template <typename T>
__global__ void __launch_bounds__(ROW_THREADS) token_sums_kernel(const TokenSums<T> p) {
  const int64_t token = blockIdx.x, column = (int64_t{blockIdx.y} * ROW_THREADS + threadIdx.x) * ROW_VECTOR;
  if (column >= p.columns) return;
  float sum[ROW_VECTOR] = {};
  for (int64_t i = p.starts[token]; i < p.starts[token + 1]; ++i) {
    const auto v = *reinterpret_cast<const Pack<T, ROW_VECTOR>*>(p.rows + p.order[i] * p.stride + column);
#pragma unroll
    for (int j = 0; j < ROW_VECTOR; ++j) sum[j] += to_float(v.value[j]);
  }
  Pack<T, ROW_VECTOR> result;
#pragma unroll
  for (int j = 0; j < ROW_VECTOR; ++j) result.value[j] = from_float<T>(sum[j]);
  *reinterpret_cast<Pack<T, ROW_VECTOR>*>(p.out + token * p.columns + column) = result;
}

}  // namespace moe::cuda
