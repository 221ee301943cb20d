// What grouped_wgmma_launch.h declares, for the files that compile it for one element type.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/grouped_outer_wgmma.cuh"
#include "cuda/grouped_rows_wgmma.cuh"
#include "cuda/grouped_wgmma_launch.h"

namespace moe::cuda {

// A block for every multiprocessor, which takes one tile after the other.
inline dim3 persistent_grid(const char* op, int64_t tiles) {
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), op);
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), op);
  return dim3(static_cast<uint32_t>(std::min<int64_t>(tiles, processors)));
}

template <typename T>
TensorMap map_of_rows(const char* op, const RowsProduct<T>& p) {
  constexpr DType dtype = std::is_same<T, __half>::value ? DType::f16 : DType::bf16;
  // The stride of a single row is never used, and may be one that the driver refuses.
  const int64_t stride = p.groups.rows > 1 ? p.x_stride : p.inner;
  return tensor_map(op, {p.x, dtype, {p.inner, p.groups.rows, 1}, {stride, 8}, HopperTile::ROWS});
}

template <typename T>
TensorMap map_of_weights(const char* op, const RowsProduct<T>& p, bool along_k) {
  constexpr DType dtype = std::is_same<T, __half>::value ? DType::f16 : DType::bf16;
  const int64_t wide = along_k ? p.inner : p.width, high = along_k ? p.width : p.inner;
  return tensor_map(op, {p.w, dtype, {wide, high, p.groups.experts}, {p.w_stride, p.w_expert_stride}, BOX_WIDTH});
}

template <typename T, bool GATHERED, bool ALONG_K>
void launch_wgmma_kernel(const char* op, const RowsProduct<T>& p, dim3 grid, cudaStream_t stream) {
  const TensorMap w_map = map_of_weights(op, p, ALONG_K), x_map = GATHERED ? w_map : map_of_rows(op, p);
  launch(op, rows_product_wgmma_kernel<T, GATHERED, ALONG_K>, grid, dim3(HopperTile::THREADS), HopperTile::SHARED_BYTES,
         stream, p, x_map, w_map);
}

template <typename T>
void launch_rows_product_wgmma(const char* op, RowsProduct<T>& p, bool along_k, cudaStream_t stream) {
  p.column_blocks = static_cast<int32_t>(ceil_div(p.width, HopperTile::COLUMNS));
  const int64_t tiles = most_row_tiles(p.groups.rows, p.groups.experts, HopperTile::ROWS) * p.column_blocks;
  const dim3 grid = persistent_grid(op, tiles);
  if (p.row_token)
    along_k ? launch_wgmma_kernel<T, true, true>(op, p, grid, stream)
            : launch_wgmma_kernel<T, true, false>(op, p, grid, stream);
  else
    along_k ? launch_wgmma_kernel<T, false, true>(op, p, grid, stream)
            : launch_wgmma_kernel<T, false, false>(op, p, grid, stream);
}

template <typename T>
void launch_outer_product_wgmma(const char* op, OuterProduct<T>& p, int32_t experts, cudaStream_t stream) {
  p.a_blocks = static_cast<int32_t>(ceil_div(p.a.columns, HopperTile::ROWS));
  p.b_blocks = static_cast<int32_t>(ceil_div(p.b.columns, HopperTile::COLUMNS));
  const int64_t tiles = int64_t{experts} * p.a_blocks * p.b_blocks;
  launch(op, outer_product_wgmma_kernel<T>, persistent_grid(op, tiles), dim3(HopperTile::THREADS),
         HopperTile::SHARED_BYTES, stream, p, tiles);
}

template <typename T>
void load_products_wgmma() {
  load_kernel(outer_product_wgmma_kernel<T>, HopperTile::SHARED_BYTES);
  load_kernel(rows_product_wgmma_kernel<T, true, true>, HopperTile::SHARED_BYTES);
  load_kernel(rows_product_wgmma_kernel<T, true, false>, HopperTile::SHARED_BYTES);
  load_kernel(rows_product_wgmma_kernel<T, false, true>, HopperTile::SHARED_BYTES);
  load_kernel(rows_product_wgmma_kernel<T, false, false>, HopperTile::SHARED_BYTES);
}

}  // namespace moe::cuda
