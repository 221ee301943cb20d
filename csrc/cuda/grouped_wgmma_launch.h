// Launches of the products on Hopper, compiled in a file of its own for each element type.
#pragma once

#include "cuda/grouped_outer.cuh"
#include "cuda/grouped_rows.cuh"

namespace moe::cuda {

// Whether the current device has wgmma.
bool has_wgmma();
// Whether it does, and the copy engine can read weights with this stride from expert to expert.
// MOE_KERNELS_CUDA_PRODUCTS=mma takes the other kernel everywhere.
bool wgmma_serves(int64_t w_expert_stride);

template <typename T>
void launch_rows_product_wgmma(const char* op, RowsProduct<T>& product, bool along_k, cudaStream_t stream);
template <typename T>
void launch_outer_product_wgmma(const char* op, OuterProduct<T>& product, int32_t experts, cudaStream_t stream);
// Where the current device has wgmma.
template <typename T>
void load_products_wgmma();

}  // namespace moe::cuda
