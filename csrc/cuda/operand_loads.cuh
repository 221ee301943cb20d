// Copies of operand tiles from global to swizzled shared memory, 16 bytes a copy, zeros where the tensor ends.
#pragma once

#include "cuda/warp_tile.cuh"

namespace moe::cuda {

// Threads of a block that computes a tile on mma.sync.
constexpr int BLOCK_THREADS = 256;

// Rows that lie along the sum, each at its own address: expert rows (gathered or not) and row-major weights.
// Eight neighbouring threads copy one row.
template <typename T, int EXTENT>
struct LoadAlongK {
  static constexpr int ROWS_AT_ONCE = BLOCK_THREADS / (BLOCK_INNER / CHUNK);
  static constexpr int ROWS_OF_THREAD = EXTENT < ROWS_AT_ONCE ? 1 : EXTENT / ROWS_AT_ONCE;

  const T* row[ROWS_OF_THREAD];  // null for a row of zeros

  // row_at(i) is the address of the tile's row i, or null.
  template <typename RowAt>
  MOE_DEVICE LoadAlongK(RowAt row_at) {
    const int first = static_cast<int>(threadIdx.x) / (BLOCK_INNER / CHUNK);
#pragma unroll
    for (int i = 0; i < ROWS_OF_THREAD; ++i)
      row[i] = first + i * ROWS_AT_ONCE < EXTENT ? row_at(first + i * ROWS_AT_ONCE) : nullptr;
  }

  // Columns block * 64 and on of `inner`.
  MOE_DEVICE void copy(SharedPtr tile, int64_t block, int64_t inner, const T* somewhere) const {
    const int first = static_cast<int>(threadIdx.x) / (BLOCK_INNER / CHUNK);
    const int chunk = static_cast<int>(threadIdx.x) % (BLOCK_INNER / CHUNK);
    const int64_t k = block * BLOCK_INNER + chunk * CHUNK;
#pragma unroll
    for (int i = 0; i < ROWS_OF_THREAD; ++i) {
      if (first + i * ROWS_AT_ONCE >= EXTENT) break;
      const bool valid = row[i] && k < inner;
      ptx::copy_async(tile + OperandTile<true, EXTENT>::offset(first + i * ROWS_AT_ONCE, chunk),
                      valid ? row[i] + k : somewhere, valid);
    }
  }
};

// Weights whose output columns lie side by side: (E, H, O).
template <typename T, int EXTENT>
struct LoadAcrossK {
  static constexpr int CHUNKS = EXTENT / CHUNK;
  static constexpr int ROWS_AT_ONCE = BLOCK_THREADS / CHUNKS;

  const T* column;  // null for columns of zeros
  int64_t stride;

  // column_at(i) is the address of the tile's column i, a multiple of 8, at k = 0, or null.
  template <typename ColumnAt>
  MOE_DEVICE LoadAcrossK(ColumnAt column_at, int64_t row_stride)
      : column(column_at(static_cast<int>(threadIdx.x) % CHUNKS * CHUNK)), stride(row_stride) {}

  MOE_DEVICE void copy(SharedPtr tile, int64_t block, int64_t inner, const T* somewhere) const {
    const int chunk = static_cast<int>(threadIdx.x) % CHUNKS, first = static_cast<int>(threadIdx.x) / CHUNKS;
#pragma unroll
    for (int i = 0; i < BLOCK_INNER / ROWS_AT_ONCE; ++i) {
      const int row = first + i * ROWS_AT_ONCE;
      const int64_t k = block * BLOCK_INNER + row;
      const bool valid = column && k < inner;
      ptx::copy_async(tile + OperandTile<false, EXTENT>::offset(row, chunk), valid ? column + k * stride : somewhere,
                      valid);
    }
  }
};

}  // namespace moe::cuda
