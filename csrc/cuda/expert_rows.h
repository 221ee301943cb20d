// Entries of the sums over expert rows. All work is queued on `stream` of `device`; nothing is synchronized.
#pragma once

#include <cuda_runtime_api.h>

#include "common/view.h"

namespace moe::cuda {

// slot_row and weights (T, K) -> row_weight (N), of which only the rows that a slot owns are written
void row_weight(const TensorView& slot_row, const TensorView& weights, const TensorView& out, int device,
                cudaStream_t stream);

// dots (N, parts), slot_row (T, K), grad (T, H), bias (E, H) or null, offsets (E + 1) -> out (T, K) float32
void slot_gradient(const TensorView& dots, const TensorView& slot_row, const TensorView& grad, const TensorView* bias,
                   const TensorView& offsets, const TensorView& out, int device, cudaStream_t stream);

// x (N, C), or (T, C) with row_token; scale (N) or null -> out (E, C)
void column_sums(const TensorView& x, const TensorView& offsets, const TensorView* row_token, const TensorView* scale,
                 const TensorView& out, int device, cudaStream_t stream);

// rows (N, H), order (N) int64, starts (T + 1) int64 -> out (T, H)
void token_sums(const TensorView& rows, const TensorView& order, const TensorView& starts, const TensorView& out,
                int device, cudaStream_t stream);

// Load the kernels onto the current device.
void load_expert_rows();

}  // namespace moe::cuda
