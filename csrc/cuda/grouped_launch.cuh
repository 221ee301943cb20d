// What grouped_launch.h declares, for the files that compile it for one element type.
#pragma once

#include <stdexcept>

#include "cuda/grouped_launch.h"
#include "cuda/grouped_wgmma_launch.h"

namespace moe::cuda {

// Up to how many rows an expert has on average the tiles of 16 rows are used. Not yet measured.
constexpr int64_t FEW_ROWS = 16;

inline dim3 grid_of(const char* op, int64_t blocks) {
  if (blocks > 0x7fffffff) throw std::invalid_argument(std::string(op) + ": too many tiles for one launch");
  return dim3(static_cast<uint32_t>(blocks));
}

template <typename T, int BLOCK_ROWS, bool ALONG_K>
void launch_rows_tile(const char* op, RowsProduct<T>& product, cudaStream_t stream) {
  product.column_blocks = static_cast<int32_t>(ceil_div(product.width, BLOCK_COLUMNS));
  const int64_t row_tiles = most_row_tiles(product.groups.rows, product.groups.experts, BLOCK_ROWS);
  launch(op, rows_product_kernel<T, BLOCK_ROWS, ALONG_K>, grid_of(op, row_tiles * product.column_blocks),
         dim3(BLOCK_THREADS), RowsTile<BLOCK_ROWS, ALONG_K>::SHARED_BYTES, stream, product);
}

template <typename T>
void launch_rows_product(const char* op, RowsProduct<T>& product, bool along_k, cudaStream_t stream) {
  // A tensor map has no dimension of size 0.
  if (product.inner > 0 && product.groups.experts > 0 && wgmma_serves(product.w_expert_stride))
    return launch_rows_product_wgmma(op, product, along_k, stream);
  // The parts of a dot product are those of the large tile.
  const bool few = product.groups.rows <= FEW_ROWS * product.groups.experts && !product.output.dot;
  if (few)
    along_k ? launch_rows_tile<T, 16, true>(op, product, stream) : launch_rows_tile<T, 16, false>(op, product, stream);
  else
    along_k ? launch_rows_tile<T, 128, true>(op, product, stream)
            : launch_rows_tile<T, 128, false>(op, product, stream);
}

template <typename T>
void launch_outer_product(const char* op, OuterProduct<T>& product, int32_t experts, cudaStream_t stream) {
  if (product.a.columns > 0 && product.b.columns > 0 && wgmma_serves(1))
    return launch_outer_product_wgmma(op, product, experts, stream);
  product.a_blocks = static_cast<int32_t>(ceil_div(product.a.columns, OUTER_BLOCK));
  product.b_blocks = static_cast<int32_t>(ceil_div(product.b.columns, OUTER_BLOCK));
  launch(op, outer_product_kernel<T>, grid_of(op, int64_t{experts} * product.a_blocks * product.b_blocks),
         dim3(BLOCK_THREADS), OuterTile::SHARED_BYTES, stream, product);
}

template <typename T>
void load_products() {
  load_kernel(rows_product_kernel<T, 16, true>, RowsTile<16, true>::SHARED_BYTES);
  load_kernel(rows_product_kernel<T, 16, false>, RowsTile<16, false>::SHARED_BYTES);
  load_kernel(rows_product_kernel<T, 128, true>, RowsTile<128, true>::SHARED_BYTES);
  load_kernel(rows_product_kernel<T, 128, false>, RowsTile<128, false>::SHARED_BYTES);
  load_kernel(outer_product_kernel<T>, OuterTile::SHARED_BYTES);
  if (has_wgmma()) load_products_wgmma<T>();
}

}  // namespace moe::cuda
