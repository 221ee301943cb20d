// Entries of permute.cu. All work is queued on `stream` of `device`; nothing is synchronized.
#pragma once

#include <cuda_runtime_api.h>

#include "common/view.h"

namespace moe::cuda {

// x (T, H), offsets (E+1), row_token (N) -> out (N, H)
void permute(const TensorView& x, const TensorView& offsets, const TensorView& row_token, const TensorView& out,
             int device, cudaStream_t stream);

// rows (N, H), slot_row (T, K), weights (T, K) float32 or null -> out (T, H)
void unpermute(const TensorView& rows, const TensorView& slot_row, const TensorView* weights, const TensorView& out,
               int device, cudaStream_t stream);

// grad (T, H), rows (N, H), slot_row and weights as above -> grad_rows (N, H), of which only the rows that a slot owns
// are written, and, with weights, grad_weights (T, K)
void unpermute_backward(const TensorView& grad, const TensorView& rows, const TensorView& slot_row,
                        const TensorView* weights, const TensorView& grad_rows, const TensorView* grad_weights,
                        int device, cudaStream_t stream);

// Load the kernels onto the current device, so that none has to be loaded while a graph is captured.
void load_permute();

}  // namespace moe::cuda
