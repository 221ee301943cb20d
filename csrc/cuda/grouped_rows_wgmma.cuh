// Each expert row times its expert's matrix on Hopper: the same product as grouped_rows.cuh by wgmma, from tiles that a
// warpgroup of producers brings in, by the copy engine and, where rows are gathered, by copies of its threads.
//
// A block computes 128 rows of one expert by 256 columns, tile after tile: two warpgroups with 64 rows each. Every
// element is summed over k in steps of 16 in ascending order by the same instruction, whatever the number of rows.
#pragma once

#include "cuda/grouped_rows.cuh"
#include "cuda/wgmma.cuh"

namespace moe::cuda {

struct HopperTile {
  static constexpr int ROWS = 128;
  static constexpr int COLUMNS = 256;
  static constexpr int STAGES = 4;
  static constexpr int WARPGROUP = 128;
  static constexpr int CONSUMERS = 2;  // warpgroups
  static constexpr int THREADS = (CONSUMERS + 1) * WARPGROUP;
  // Together what a block of 384 threads gets: 168 registers a thread.
  static constexpr int PRODUCER_REGISTERS = 56;
  static constexpr int CONSUMER_REGISTERS = 224;
  // Stages that a gathering producer issues before it waits for the first of them to land.
  static constexpr int IN_FLIGHT = 2;
  static_assert(IN_FLIGHT + 2 <= STAGES, "the consumer frees a stage only when the next one is full");

  // The columns come in boxes of 64. Where gate's come before up's, every other box is up's.
  static constexpr int BOX = BOX_WIDTH;
  static constexpr int BOX_BYTES = BOX * BLOCK_INNER * 2;
  static constexpr int ROWS_BYTES = ROWS * BLOCK_INNER * 2;
  static constexpr int STAGE_BYTES = ROWS_BYTES + COLUMNS / BOX * BOX_BYTES;

  // A warp hands its 16 x 256 sums on in parts.
  using Patch = WarpPatch<16, DOT_COLUMNS>;
  static constexpr int PATCHES = STAGES * STAGE_BYTES;
  static constexpr int BARRIERS = PATCHES + CONSUMERS * WARPGROUP / WARP * Patch::BYTES;
  static constexpr int SHARED_BYTES = BARRIERS + 2 * STAGES * 8;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MOE_EMULATE)

// The ring of stages: which one comes next, and the barriers that say when it is full and when it is free again.
struct Ring {
  SharedPtr shared;
  uint32_t turn = 0;

  MOE_DEVICE SharedPtr tile(uint32_t which) const {
    return shared + static_cast<int>(which % HopperTile::STAGES) * HopperTile::STAGE_BYTES;
  }
  MOE_DEVICE SharedPtr full(uint32_t which) const {
    return shared + HopperTile::BARRIERS + static_cast<int>(which % HopperTile::STAGES) * 8;
  }
  MOE_DEVICE SharedPtr free(uint32_t which) const { return full(which) + HopperTile::STAGES * 8; }
  static MOE_DEVICE uint32_t parity(uint32_t which) { return which / HopperTile::STAGES & 1; }
};

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
  uint32_t landed = 0;
  // A thread vouches for its own copies: they have landed, and the tensor cores may see them.
  auto vouch = [&] {
    ptx::fence_for_tensor_cores();
    ptx::barrier_arrive(ring.full(landed++));
  };
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
      ptx::copy_async_commit();
      if (ring.turn - landed == HopperTile::IN_FLIGHT) {
        ptx::copy_async_wait<HopperTile::IN_FLIGHT>();
        vouch();
      }
    }
  }
  ptx::copy_async_wait<0>();
  while (landed != ring.turn) vouch();
}

// A warp writes its 16 x 256 sums, 32 columns at a time. `row` is its first one in the tile.
template <typename T>
MOE_DEVICE void write_sums(const RowsProduct<T>& p, const Tile& tile, const float (&sums)[128], float* patch, int row,
                           int lane) {
  using Patch = HopperTile::Patch;
  constexpr int PARTS = HopperTile::COLUMNS / DOT_COLUMNS;
#pragma unroll 1
  for (int part = 0; part < PARTS; ++part) {
    // One part is taken from the registers, whose numbers must be known to the compiler.
#pragma unroll
    for (int known = 0; known < PARTS; ++known) {
      if (known != part) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Eight of gate's columns and eight of up's in turn, where they are in different boxes.
        const int apart = known / 4 * 16 + known % 4 * 2 + j / 2 + j % 2 * 8, close = known * 4 + j;
        const float* a = &sums[4 * apart];
        const float* b = &sums[4 * close];
        const bool pairs = p.up_from != 0;
        Patch::store(patch, 0, 8 * j, lane, pairs ? a[0] : b[0], pairs ? a[1] : b[1], pairs ? a[2] : b[2],
                     pairs ? a[3] : b[3]);
      }
    }
    __syncwarp();
    const int taken = p.output.sums_per_vector();
    const int64_t column = (int64_t{tile.column_block} * HopperTile::COLUMNS + part * DOT_COLUMNS) / taken * VECTOR;
    write_patch<16, DOT_COLUMNS>(p.output, tile.group, tile.first_row + row, tile.rows - row, column, patch, lane);
    __syncwarp();
  }
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
    for (int64_t k = 0; k < p.inner; k += BLOCK_INNER, ++ring.turn) {
      ptx::barrier_wait(ring.full(ring.turn), Ring::parity(ring.turn));
      const uint32_t stage = ptx::descriptor_address(ring.tile(ring.turn));
      const uint32_t rows = stage + half * (HopperTile::ROWS_BYTES / HopperTile::CONSUMERS);
      const uint32_t weights = stage + HopperTile::ROWS_BYTES;
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < BLOCK_INNER / 16; ++step) {
        const uint64_t left = ptx::matrix_descriptor(rows + step * 32, 16, 1024);
        const uint64_t right = ALONG_K ? ptx::matrix_descriptor(weights + step * 32, 16, 1024)
                                       : ptx::matrix_descriptor(weights + step * 2048, HopperTile::BOX_BYTES, 1024);
        ptx::wgmma<!ALONG_K>(sums, left, right, k > 0 || step > 0, T{});
      }
      ptx::wgmma_commit();
      // The products of the stage before are done: it may be filled again.
      ptx::wgmma_wait<1>();
      if (k > 0 && lane == 0) ptx::barrier_arrive(ring.free(ring.turn - 1));
    }
    ptx::wgmma_wait<0>();
    if (lane == 0) ptx::barrier_arrive(ring.free(ring.turn - 1));
    write_sums(p, tile, sums, patch, warp * 16, lane);
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
    for (uint32_t i = 0; i < HopperTile::STAGES; ++i) {
      ptx::barrier_init(ring.full(i), GATHERED ? HopperTile::WARPGROUP : 1);
      ptx::barrier_init(ring.free(i), HopperTile::CONSUMERS * HopperTile::WARPGROUP / WARP);
    }
    ptx::barrier_init_fence();
    ptx::prefetch_map(&w_map);
    if (!GATHERED) ptx::prefetch_map(&x_map);
  }
  __syncthreads();
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
