// The sum of a[n] ⊗ b[n] over each expert's rows, on mma.sync: the gradient of the experts' weights.
//
// A block computes 128 x 128 elements of one expert's matrix and walks down its rows, 64 at a time; an expert without
// rows gets zeros. Either operand may be gathered by token in its load.
#pragma once

#include "cuda/numbers.cuh"
#include "cuda/operand_loads.cuh"
#include "cuda/schedule.h"

namespace moe::cuda {

constexpr int OUTER_BLOCK = 128;

template <typename T>
struct RowsOperand {
  const T* data;
  int64_t stride;
  const int32_t* row_token;  // (N) or null
  int64_t columns;           // multiple of 8
};

template <typename T>
struct OuterProduct {
  const int32_t* offsets;  // (E + 1)
  RowsOperand<T> a, b;
  T* out;  // (E, columns of a, columns of b)
  int32_t a_blocks, b_blocks;
};

struct OuterTile {
  static constexpr int WARPS_DOWN = 2;
  static constexpr int WARPS_ACROSS = BLOCK_THREADS / WARP / WARPS_DOWN;
  static constexpr int STAGES = 3;

  using Operand = OperandTile<false, OUTER_BLOCK>;
  using Sums = WarpSums<OUTER_BLOCK / WARPS_DOWN / 16, OUTER_BLOCK / WARPS_ACROSS / 8>;

  static constexpr int STAGE_BYTES = 2 * Operand::BYTES;
  static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;
};
static_assert(BLOCK_THREADS / WARP * OuterTile::Sums::Patch::BYTES <= OuterTile::SHARED_BYTES, "patches fit");

// Rows of one expert, 64 at a time, as [row][128 columns].
template <typename T>
struct LoadRows {
  static constexpr int CHUNKS = OUTER_BLOCK / CHUNK;
  static constexpr int ROWS_AT_ONCE = BLOCK_THREADS / CHUNKS;
  static constexpr int ROWS_OF_THREAD = BLOCK_INNER / ROWS_AT_ONCE;

  const RowsOperand<T>& operand;
  int64_t column;
  int64_t end;
  int64_t row[ROWS_OF_THREAD];  // of `data`, of the tile that is copied next

  MOE_DEVICE LoadRows(const RowsOperand<T>& rows, int32_t block, int64_t first, int64_t end_row)
      : operand(rows),
        column(int64_t{block} * OUTER_BLOCK + static_cast<int>(threadIdx.x) % CHUNKS * CHUNK),
        end(end_row) {
    look_up(first);
  }

  // Reads the tokens one tile ahead of the copies, which would otherwise wait for them.
  MOE_DEVICE void look_up(int64_t first) {
#pragma unroll
    for (int i = 0; i < ROWS_OF_THREAD; ++i) {
      const int64_t n = first + static_cast<int>(threadIdx.x) / CHUNKS + i * ROWS_AT_ONCE;
      row[i] = n >= end ? -1 : operand.row_token ? operand.row_token[n] : n;
    }
  }

  MOE_DEVICE void copy(SharedPtr tile) const {
    const int chunk = static_cast<int>(threadIdx.x) % CHUNKS, first = static_cast<int>(threadIdx.x) / CHUNKS;
#pragma unroll
    for (int i = 0; i < ROWS_OF_THREAD; ++i) {
      const bool valid = row[i] >= 0 && column < operand.columns;
      ptx::copy_async(tile + OuterTile::Operand::offset(first + i * ROWS_AT_ONCE, chunk),
                      valid ? operand.data + row[i] * operand.stride + column : operand.data, valid);
    }
  }
};

template <typename T>
__global__ void __launch_bounds__(BLOCK_THREADS) outer_product_kernel(const OuterProduct<T> p) {
  using Shape = OuterTile;
  using Sums = Shape::Sums;
  MOE_DYNAMIC_SHARED(shared);
  const int warp = static_cast<int>(threadIdx.x) / WARP, lane = static_cast<int>(threadIdx.x) % WARP;

  const int32_t tiles = p.a_blocks * p.b_blocks, expert = static_cast<int32_t>(blockIdx.x) / tiles;
  const int32_t in_expert = static_cast<int32_t>(blockIdx.x) % tiles;
  const int32_t a_block = in_expert % p.a_blocks, b_block = in_expert / p.a_blocks;
  const int64_t first = p.offsets[expert], end = p.offsets[expert + 1];

  LoadRows<T> a(p.a, a_block, first, end), b(p.b, b_block, first, end);
  const SharedPtr stages = shared_address(shared);
  const int64_t blocks = ceil_div(end - first, BLOCK_INNER);
  auto load = [&](int64_t block) {
    const SharedPtr stage = stages + static_cast<int>(block % Shape::STAGES) * Shape::STAGE_BYTES;
    a.copy(stage);
    b.copy(stage + Shape::Operand::BYTES);
    a.look_up(first + (block + 1) * BLOCK_INNER);
    b.look_up(first + (block + 1) * BLOCK_INNER);
  };
  for (int64_t block = 0; block < Shape::STAGES - 1; ++block) {
    if (block < blocks) load(block);
    ptx::copy_async_commit();
  }
  Sums sums;
  sums.clear();
  const int row = warp / Shape::WARPS_ACROSS * Sums::ROWS, column = warp % Shape::WARPS_ACROSS * Sums::COLUMNS;
  for (int64_t block = 0; block < blocks; ++block) {
    ptx::copy_async_wait<Shape::STAGES - 2>();
    __syncthreads();
    if (block + Shape::STAGES - 1 < blocks) load(block + Shape::STAGES - 1);
    ptx::copy_async_commit();
    const SharedPtr stage = stages + static_cast<int>(block % Shape::STAGES) * Shape::STAGE_BYTES;
    sums.template add<T, Shape::Operand, Shape::Operand>(stage, stage + Shape::Operand::BYTES, row, column, lane);
  }
  ptx::copy_async_wait<0>();
  __syncthreads();

  float* patch = reinterpret_cast<float*>(shared + warp * Sums::Patch::BYTES);
  sums.store(patch, lane);
  __syncwarp();
  T* out = p.out + expert * p.a.columns * p.b.columns;
  constexpr int VECTORS = Sums::COLUMNS / CHUNK;
  for (int unit = lane; unit < Sums::ROWS * VECTORS; unit += WARP) {
    const int r = unit / VECTORS, c = unit % VECTORS * CHUNK;
    const int64_t i = int64_t{a_block} * OUTER_BLOCK + row + r, j = int64_t{b_block} * OUTER_BLOCK + column + c;
    if (i >= p.a.columns || j >= p.b.columns) continue;
    Pack<T, CHUNK> vector;
#pragma unroll
    for (int k = 0; k < CHUNK; ++k) vector.value[k] = from_float<T>(patch[r * Sums::Patch::STRIDE + c + k]);
    *reinterpret_cast<Pack<T, CHUNK>*>(out + i * p.b.columns + j) = vector;
  }
}

}  // namespace moe::cuda
