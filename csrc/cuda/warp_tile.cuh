// A warp's part of a product on mma.sync: fragments from swizzled shared memory, sums in registers.
//
// An operand's tile lies in shared memory in one of two ways:
//   along K:   [index of the output][64 of the sum], rows of 128 bytes
//   across K:  [64 of the sum][128 of the output],   rows of 256 bytes
// and in both the 16-byte chunk c of row r is stored at c ^ (r % 8): eight rows of one chunk lie in different banks.
// Every element is summed over k in steps of 16 in ascending order, whatever the shape of the tile.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace moe::cuda {

constexpr int WARP = 32;
// Extent of a tile along the sum.
constexpr int BLOCK_INNER = 64;
constexpr int CHUNK = 8;  // 16-bit elements in 16 bytes

template <int CHUNKS_PER_ROW>
MOE_DEVICE int swizzled(int row, int chunk) {
  return (row * CHUNKS_PER_ROW + (chunk ^ (row & 7))) * 16;
}

template <bool ALONG_K, int EXTENT>
struct OperandTile {
  static constexpr int CHUNKS_PER_ROW = ALONG_K ? BLOCK_INNER / CHUNK : EXTENT / CHUNK;
  static constexpr int ROWS = ALONG_K ? EXTENT : BLOCK_INNER;
  static constexpr int BYTES = EXTENT * BLOCK_INNER * 2;

  static MOE_DEVICE int offset(int row, int chunk) { return swizzled<CHUNKS_PER_ROW>(row, chunk); }

  // The 16 x 16 block at (index, 16 * step): as the left operand, index 8..15 before k 8..15.
  static MOE_DEVICE void left(uint32_t (&r)[4], SharedPtr tile, int index, int step, int lane) {
    const int matrix = lane / 8, in_index = (matrix & 1) * 8, in_k = (matrix >> 1) * 8;
    block(r, tile, index + in_index, step * 16 + in_k, lane & 7);
  }

  // The same as the right operand: k 8..15 before index 8..15, so that r[0], r[1] are its first eight columns.
  static MOE_DEVICE void right(uint32_t (&r)[4], SharedPtr tile, int index, int step, int lane) {
    const int matrix = lane / 8, in_index = (matrix >> 1) * 8, in_k = (matrix & 1) * 8;
    block(r, tile, index + in_index, step * 16 + in_k, lane & 7);
  }

 private:
  static MOE_DEVICE void block(uint32_t (&r)[4], SharedPtr tile, int index, int k, int row) {
    if constexpr (ALONG_K)
      ptx::load_matrices<false>(r, tile + offset(index + row, k / CHUNK));
    else
      ptx::load_matrices<true>(r, tile + offset(k + row, index / CHUNK));
  }
};

// Sums of a warp in shared memory, on their way to the output.
template <int ROWS, int COLUMNS>
struct WarpPatch {
  // Floats from a row to the next: an odd multiple of 8 keeps the stores of a warp in different banks.
  static constexpr int STRIDE = COLUMNS + 8;
  static constexpr int BYTES = ROWS * STRIDE * 4;

  // A lane's four sums of the 16 x 8 block at (row, column).
  static MOE_DEVICE void store(float* patch, int row, int column, int lane, float a, float b, float c, float d) {
    float* at = patch + (row + lane / 4) * STRIDE + column + 2 * (lane % 4);
    *reinterpret_cast<float2*>(at) = make_float2(a, b);
    *reinterpret_cast<float2*>(at + 8 * STRIDE) = make_float2(c, d);
  }
};

// Sums of (16 ROW_BLOCKS) x (8 COLUMN_BLOCKS) elements, spread over a warp as mma.sync leaves them.
template <int ROW_BLOCKS, int COLUMN_BLOCKS>
struct WarpSums {
  static constexpr int ROWS = 16 * ROW_BLOCKS, COLUMNS = 8 * COLUMN_BLOCKS;
  using Patch = WarpPatch<ROWS, COLUMNS>;

  float value[ROW_BLOCKS][COLUMN_BLOCKS][4];

  MOE_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < ROW_BLOCKS; ++i)
#pragma unroll
      for (int j = 0; j < COLUMN_BLOCKS; ++j)
#pragma unroll
        for (int k = 0; k < 4; ++k) value[i][j][k] = 0.0f;
  }

  // Adds the product of 64 steps of the sum.
  template <typename T, typename Left, typename Right>
  MOE_DEVICE void add(SharedPtr left, SharedPtr right, int row, int column, int lane) {
#pragma unroll
    for (int step = 0; step < BLOCK_INNER / 16; ++step) {
      uint32_t a[ROW_BLOCKS][4], b[COLUMN_BLOCKS / 2][4];
#pragma unroll
      for (int i = 0; i < ROW_BLOCKS; ++i) Left::left(a[i], left, row + 16 * i, step, lane);
#pragma unroll
      for (int j = 0; j < COLUMN_BLOCKS / 2; ++j) Right::right(b[j], right, column + 16 * j, step, lane);
#pragma unroll
      for (int i = 0; i < ROW_BLOCKS; ++i)
#pragma unroll
        for (int j = 0; j < COLUMN_BLOCKS; ++j)
          ptx::mma(value[i][j], a[i], b[j / 2][2 * (j % 2)], b[j / 2][2 * (j % 2) + 1], T{});
    }
  }

  // Writes the sums to shared memory, row after row.
  MOE_DEVICE void store(float* patch, int lane) const {
#pragma unroll
    for (int i = 0; i < ROW_BLOCKS; ++i)
#pragma unroll
      for (int j = 0; j < COLUMN_BLOCKS; ++j)
        Patch::store(patch, 16 * i, 8 * j, lane, value[i][j][0], value[i][j][1], value[i][j][2], value[i][j][3]);
  }
};

}  // namespace moe::cuda
