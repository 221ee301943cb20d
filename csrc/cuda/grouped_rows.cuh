// Each expert row times its expert's matrix, on mma.sync: the kernel behind grouped_mm, the up- and the
// down-projection of the expert MLP, and the gradients of their inputs.
//
// A block computes BLOCK_ROWS rows of one expert by 128 columns. Three or four tiles of both operands are under way.
// The sums go through shared memory, so that the output is written in whole vectors.
#pragma once

#include "cuda/expert_output.cuh"
#include "cuda/find_tile.cuh"
#include "cuda/operand_loads.cuh"

namespace moe::cuda {

constexpr int BLOCK_COLUMNS = 128;

template <typename T>
struct RowsProduct {
  Groups groups;
  const T* x;  // (N, inner), or (T, inner) with row_token
  int64_t x_stride;
  const int32_t* row_token;  // (N) or null
  const T* w;                // (E, width, inner) or (E, inner, width)
  int64_t w_expert_stride;
  int64_t w_stride;  // between its rows as they lie
  int64_t inner;     // multiple of 8
  int64_t width;     // columns of the product, a multiple of 8
  int64_t up_from;   // where up's columns begin if gate's come first, else 0
  int32_t column_blocks;
  ExpertOutput<T> output;

  // The column of the product that column i of a tile holds, -1 behind the last. Where gate's columns come first, a
  // tile takes eight of them and eight of up's in turn, so that a pair is always in one tile.
  MOE_DEVICE int64_t product_column(int32_t column_block, int i) const {
    if (!up_from) {
      const int64_t column = int64_t{column_block} * BLOCK_COLUMNS + i;
      return column < width ? column : -1;
    }
    const int64_t pair = int64_t{column_block} * (BLOCK_COLUMNS / 2) + i / 16 * 8 + i % 8;
    return pair < up_from ? pair + (i / 8 % 2) * up_from : -1;
  }
};

template <int BLOCK_ROWS, bool ALONG_K>
struct RowsTile {
  static constexpr int WARPS_DOWN = BLOCK_ROWS >= 64 ? 2 : 1;
  static constexpr int WARPS_ACROSS = BLOCK_THREADS / WARP / WARPS_DOWN;
  static constexpr int STAGES = BLOCK_ROWS >= 64 ? 3 : 4;

  using Left = OperandTile<true, BLOCK_ROWS>;
  using Right = OperandTile<ALONG_K, BLOCK_COLUMNS>;
  using Sums = WarpSums<BLOCK_ROWS / WARPS_DOWN / 16, BLOCK_COLUMNS / WARPS_ACROSS / 8>;

  static constexpr int STAGE_BYTES = Left::BYTES + Right::BYTES;
  static constexpr int PATCHES_BYTES = BLOCK_THREADS / WARP * Sums::Patch::BYTES;
  static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES > PATCHES_BYTES ? STAGES * STAGE_BYTES : PATCHES_BYTES;
};

template <typename T, bool ALONG_K>
MOE_DEVICE auto load_of_weights(const RowsProduct<T>& p, const Tile& tile) {
  const T* w = p.w + tile.group * p.w_expert_stride;
  if constexpr (ALONG_K)
    return LoadAlongK<T, BLOCK_COLUMNS>([&](int i) {
      const int64_t column = p.product_column(tile.column_block, i);
      return column < 0 ? nullptr : w + column * p.w_stride;
    });
  else
    return LoadAcrossK<T, BLOCK_COLUMNS>(
        [&](int i) {
          const int64_t column = p.product_column(tile.column_block, i);
          return column < 0 ? nullptr : w + column;
        },
        p.w_stride);
}

template <typename T, int BLOCK_ROWS, bool ALONG_K>
__global__ void __launch_bounds__(BLOCK_THREADS) rows_product_kernel(const RowsProduct<T> p) {
  using Shape = RowsTile<BLOCK_ROWS, ALONG_K>;
  using Sums = typename Shape::Sums;
  MOE_DYNAMIC_SHARED(shared);
  const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;

  Position position;
  Tile tile;
  if (!find_tile_by_warp(p.groups, blockIdx.x, BLOCK_ROWS, p.column_blocks, position, tile)) return;
  if (tile.group == p.groups.experts)
    return zero_tile(p.output, tile, BLOCK_COLUMNS, static_cast<int>(threadIdx.x), BLOCK_THREADS);

  const LoadAlongK<T, BLOCK_ROWS> rows([&](int i) -> const T* {
    if (i >= tile.rows) return nullptr;
    const int64_t row = tile.first_row + i;
    return p.x + (p.row_token ? int64_t{p.row_token[row]} : row) * p.x_stride;
  });
  const auto weights = load_of_weights<T, ALONG_K>(p, tile);
  const SharedPtr stages = shared_address(shared);
  auto load = [&](int64_t block) {
    const SharedPtr stage = stages + static_cast<int>(block % Shape::STAGES) * Shape::STAGE_BYTES;
    rows.copy(stage, block, p.inner, p.x);
    weights.copy(stage + Shape::Left::BYTES, block, p.inner, p.w);
  };

  const int64_t blocks = ceil_div(p.inner, BLOCK_INNER);
  for (int64_t block = 0; block < Shape::STAGES - 1; ++block) {
    if (block < blocks) load(block);
    ptx::copy_async_commit();
  }
  Sums sums;
  sums.clear();
  const int row = warp / Shape::WARPS_ACROSS * Sums::ROWS, column = warp % Shape::WARPS_ACROSS * Sums::COLUMNS;
  for (int64_t block = 0; block < blocks; ++block) {
    ptx::copy_async_wait<Shape::STAGES - 2>();
    // Everybody's copies of this tile have landed, and nobody reads the tile before it any more.
    __syncthreads();
    if (block + Shape::STAGES - 1 < blocks) load(block + Shape::STAGES - 1);
    ptx::copy_async_commit();
    const SharedPtr stage = stages + static_cast<int>(block % Shape::STAGES) * Shape::STAGE_BYTES;
    // A warp whose rows all lie behind the expert's last has nothing to add.
    if (row < tile.rows)
      sums.template add<T, typename Shape::Left, typename Shape::Right>(stage, stage + Shape::Left::BYTES, row, column,
                                                                        lane);
  }
  ptx::copy_async_wait<0>();
  __syncthreads();
  float* patch = reinterpret_cast<float*>(shared + warp * Sums::Patch::BYTES);
  sums.store(patch, lane);
  __syncwarp();
  const int taken = p.output.sums_per_vector();
  const int64_t first_column = (int64_t{tile.column_block} * BLOCK_COLUMNS + column) / taken * VECTOR;
  write_patch<Sums::ROWS, Sums::COLUMNS>(p.output, tile.group, tile.first_row + row, tile.rows - row, first_column,
                                         patch, lane);
}

}  // namespace moe::cuda
