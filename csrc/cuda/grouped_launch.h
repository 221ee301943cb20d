// Launches of the products over expert rows, compiled in a file of its own for each element type.
#pragma once

#include "cuda/grouped_outer.cuh"
#include "cuda/grouped_rows.cuh"

namespace moe::cuda {

// `along_k`: the weights' rows lie along the sum.
template <typename T>
void launch_rows_product(const char* op, RowsProduct<T>& product, bool along_k, cudaStream_t stream);
template <typename T>
void launch_outer_product(const char* op, OuterProduct<T>& product, int32_t experts, cudaStream_t stream);
template <typename T>
void load_products();

}  // namespace moe::cuda
