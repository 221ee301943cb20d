// Entry of route.cu. All work is queued on `stream` of `device`; nothing is synchronized.
#pragma once

#include <cuda_runtime_api.h>

#include "common/view.h"

namespace moe::cuda {

// Words of 4 bytes that `route` needs as scratch.
int64_t route_scratch(int64_t slots, int64_t experts);

// indices (T, K) int32 or int64, contiguous -> offsets (E+1), row_token (N), slot_row (T, K), all int32
void route(const TensorView& indices, const TensorView& offsets, const TensorView& row_token,
           const TensorView& slot_row, const TensorView& scratch, int device, cudaStream_t stream);

// Load the kernels onto the current device.
void load_route();

}  // namespace moe::cuda
