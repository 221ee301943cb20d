// Each expert row times its expert's matrix on Hopper: the same product as grouped_rows.cuh by wgmma, from tiles that a
// warpgroup of producers brings in, by the copy engine and, where rows are gathered, by copies of its threads.
//
// A block computes 128 rows of one expert by 256 columns, tile after tile: two warpgroups with 64 rows each. Every
// element is summed over k in steps of 16 in ascending order by the same instruction, whatever the number of rows.
#pragma once

#include "cuda/grouped_rows.cuh"
#include "cuda/hopper_tile.cuh"

namespace moe::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MOE_EMULATE)

// The column of the product where a tile's box begins.
template <typename T>
MOE_DEVICE int32_t box_column(const RowsProduct<T>& p, int32_t column_block, int box) {
  if (!p.up_from) return column_block * HopperTile::COLUMNS + box * HopperTile::BOX;
  const int32_t pair = column_block * (HopperTile::COLUMNS / 2) + box / 2 * HopperTile::BOX;
  return pair + (box % 2 ? static_cast<int32_t>(p.up_from) : 0);
}

template <typename T, bool ALONG_K>
MOE_DEVICE void copy_weights(const RowsProduct<T>& p, const TensorMap* map, const Tile& tile, int32_t k, SharedPtr to,
                             SharedPtr barrier) {
#pragma unroll
  for (int box = 0; box < HopperTile::COLUMNS / HopperTile::BOX; ++box) {
    const int32_t column = box_column(p, tile.column_block, box);
    ptx::copy_box(to + box * HopperTile::BOX_BYTES, map, ALONG_K ? k : column, ALONG_K ? column : k, tile.group,
                  barrier);
  }
}

// The producer where rows lie as they are needed: one thread starts the copies.
template <typename T, bool ALONG_K>
MOE_DEVICE void produce_rows(const RowsProduct<T>& p, const TensorMap* x_map, const TensorMap* w_map, Ring ring) {
  if (threadIdx.x >= WARP) return;
  Position position;
  Tile tile;
  for (int64_t next = blockIdx.x;
       find_tile_by_warp(p.groups, next, HopperTile::ROWS, p.column_blocks, position, tile) &&
       tile.group < p.groups.experts;
       next += gridDim.x) {
    if (threadIdx.x != 0) continue;
    for (int64_t k = 0; k < p.inner; k += BLOCK_INNER, ++ring.turn) {
      ptx::barrier_wait(ring.free(ring.turn), Ring::parity(ring.turn) ^ 1);
      const SharedPtr stage = ring.tile(ring.turn), full = ring.full(ring.turn);
      ptx::barrier_expect(full, HopperTile::STAGE_BYTES);
      ptx::barrier_arrive(full);
      ptx::copy_box(stage, x_map, static_cast<int32_t>(k), static_cast<int32_t>(tile.first_row), 0, full);
      copy_weights<T, ALONG_K>(p, w_map, tile, static_cast<int32_t>(k), stage + HopperTile::ROWS_BYTES, full);
    }
  }
}

// The producer that gathers: its 128 threads copy the rows, the first of them also starts the copies of the weights.
template <typename T, bool ALONG_K>
MOE_DEVICE void produce_gathered(const RowsProduct<T>& p, const TensorMap* w_map, Ring ring) {
  constexpr int CHUNKS = BLOCK_INNER / CHUNK, ROWS_AT_ONCE = HopperTile::WARPGROUP / CHUNKS;
  constexpr int ROWS_OF_THREAD = HopperTile::ROWS / ROWS_AT_ONCE;
  const int chunk = static_cast<int>(threadIdx.x) % CHUNKS, first = static_cast<int>(threadIdx.x) / CHUNKS;
  Landing landing;
  Position position;
  Tile tile;
  for (int64_t next = blockIdx.x;
       find_tile_by_warp(p.groups, next, HopperTile::ROWS, p.column_blocks, position, tile) &&
       tile.group < p.groups.experts;
       next += gridDim.x) {
    int32_t token[ROWS_OF_THREAD];
#pragma unroll
    for (int i = 0; i < ROWS_OF_THREAD; ++i) {
      const int row = first + i * ROWS_AT_ONCE;
      token[i] = row < tile.rows ? p.row_token[tile.first_row + row] : -1;
    }
    for (int64_t block = 0; block < p.inner; block += BLOCK_INNER, ++ring.turn) {
      const SharedPtr stage = ring.tile(ring.turn);
      ptx::barrier_wait(ring.free(ring.turn), Ring::parity(ring.turn) ^ 1);
      if (threadIdx.x == 0) {
        ptx::barrier_expect(ring.full(ring.turn), HopperTile::STAGE_BYTES - HopperTile::ROWS_BYTES);
        copy_weights<T, ALONG_K>(p, w_map, tile, static_cast<int32_t>(block), stage + HopperTile::ROWS_BYTES,
                                 ring.full(ring.turn));
      }
      const int64_t k = block + chunk * CHUNK;
#pragma unroll
      for (int i = 0; i < ROWS_OF_THREAD; ++i) {
        const bool valid = token[i] >= 0 && k < p.inner;
        ptx::copy_async(stage + swizzled<CHUNKS>(first + i * ROWS_AT_ONCE, chunk),
                        valid ? p.x + token[i] * p.x_stride + k : p.x, valid);
      }
      landing.commit(ring);
    }
  }
  landing.finish(ring);
}

template <typename T, bool ALONG_K>
MOE_DEVICE void consume(const RowsProduct<T>& p, unsigned char* shared, Ring ring) {
  const int thread = static_cast<int>(threadIdx.x) - HopperTile::WARPGROUP, warp = thread / WARP, lane = thread % WARP;
  const int half = thread / HopperTile::WARPGROUP;
  float* patch = reinterpret_cast<float*>(shared + HopperTile::PATCHES + warp * HopperTile::Patch::BYTES);
  float sums[128];
  Position position;
  Tile tile;
  for (int64_t next = blockIdx.x; find_tile_by_warp(p.groups, next, HopperTile::ROWS, p.column_blocks, position, tile);
       next += gridDim.x) {
    if (tile.group == p.groups.experts) {
      zero_tile(p.output, tile, HopperTile::COLUMNS, thread, HopperTile::CONSUMERS * HopperTile::WARPGROUP);
      continue;
    }
    multiply<T, false, !ALONG_K>(ring, ceil_div(p.inner, BLOCK_INNER), half, lane, sums);
    write_sums(p.output, p.up_from != 0, tile, sums, patch, warp * 16, lane);
  }
}

#endif

template <typename T, bool GATHERED, bool ALONG_K>
__global__ void __launch_bounds__(HopperTile::THREADS, 1)
    rows_product_wgmma_kernel(const __grid_constant__ RowsProduct<T> p, const __grid_constant__ TensorMap x_map,
                              const __grid_constant__ TensorMap w_map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MOE_EMULATE)
  MOE_DYNAMIC_SHARED(shared);
  Ring ring{shared_address(shared)};
  if (threadIdx.x == 0) {
    ptx::prefetch_map(&w_map);
    if (!GATHERED) ptx::prefetch_map(&x_map);
  }
  start_ring(ring, GATHERED ? HopperTile::WARPGROUP : 1);
  if (threadIdx.x < HopperTile::WARPGROUP) {
    ptx::give_registers<HopperTile::PRODUCER_REGISTERS>();
    if constexpr (GATHERED)
      produce_gathered<T, ALONG_K>(p, &w_map, ring);
    else
      produce_rows<T, ALONG_K>(p, &x_map, &w_map, ring);
  } else {
    ptx::take_registers<HopperTile::CONSUMER_REGISTERS>();
    consume<T, ALONG_K>(p, shared, ring);
  }
#endif
}

}  // namespace moe::cuda
