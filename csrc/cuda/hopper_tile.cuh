// What the kernels on Hopper share: a block of 384 threads that computes tiles of 128 x 256 sums. One warpgroup brings
// the operands into a ring of stages in shared memory; two multiply, 64 rows each.
#pragma once

#include "cuda/expert_output.cuh"
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

// Called by all threads of the block. `arrivals`: how many tell that a stage is full.
MOE_DEVICE void start_ring(const Ring& ring, int arrivals) {
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < HopperTile::STAGES; ++i) {
      ptx::barrier_init(ring.full(i), arrivals);
      ptx::barrier_init(ring.free(i), HopperTile::CONSUMERS * HopperTile::WARPGROUP / WARP);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
}

// A producer thread that copies by itself vouches for its copies, a stage at a time: they have landed, and the tensor
// cores may see them. It does so IN_FLIGHT stages behind.
struct Landing {
  uint32_t landed = 0;

  // After the copies of the stage `ring.turn` were issued.
  MOE_DEVICE void commit(const Ring& ring) {
    ptx::copy_async_commit();
    if (ring.turn - landed < HopperTile::IN_FLIGHT) return;
    ptx::copy_async_wait<HopperTile::IN_FLIGHT>();
    vouch(ring);
  }
  MOE_DEVICE void finish(const Ring& ring) {
    ptx::copy_async_wait<0>();
    while (landed != ring.turn) vouch(ring);
  }

 private:
  MOE_DEVICE void vouch(const Ring& ring) {
    ptx::fence_for_tensor_cores();
    ptx::barrier_arrive(ring.full(landed++));
  }
};

// Sixteen steps of the sum of a tile: 32 bytes of every row, or 16 rows of 128 bytes of every box.
template <bool ACROSS_K>
MOE_DEVICE uint64_t step_descriptor(uint32_t tile, int step) {
  return ACROSS_K ? ptx::matrix_descriptor(tile + step * 2048, HopperTile::BOX_BYTES, 1024)
                  : ptx::matrix_descriptor(tile + step * 32, 16, 1024);
}

// The sums of `blocks` stages, 64 steps of the sum each: the left operand's `half`, 64 of its 128 rows, times the right
// one. Every element is summed in steps of 16 in ascending order by one instruction.
template <typename T, bool A_ACROSS_K, bool B_ACROSS_K>
MOE_DEVICE void multiply(Ring& ring, int64_t blocks, int half, int lane, float (&sums)[128]) {
  constexpr int HALF_BYTES = HopperTile::ROWS_BYTES / HopperTile::CONSUMERS;
  for (int64_t block = 0; block < blocks; ++block, ++ring.turn) {
    ptx::barrier_wait(ring.full(ring.turn), Ring::parity(ring.turn));
    const uint32_t stage = ptx::descriptor_address(ring.tile(ring.turn));
    const uint32_t left = stage + half * HALF_BYTES, right = stage + HopperTile::ROWS_BYTES;
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < BLOCK_INNER / 16; ++step)
      ptx::wgmma<A_ACROSS_K, B_ACROSS_K>(sums, step_descriptor<A_ACROSS_K>(left, step),
                                         step_descriptor<B_ACROSS_K>(right, step), block > 0 || step > 0, T{});
    ptx::wgmma_commit();
    // The products of the stage before are done: it may be filled again.
    ptx::wgmma_wait<1>();
    if (block > 0 && lane == 0) ptx::barrier_arrive(ring.free(ring.turn - 1));
  }
  ptx::wgmma_wait<0>();
  if (blocks > 0 && lane == 0) ptx::barrier_arrive(ring.free(ring.turn - 1));
}

// A warp writes its 16 x 256 sums, 32 columns at a time. `row` is its first one in the tile; `pairs`: every other box
// of columns is up's.
template <typename T>
MOE_DEVICE void write_sums(const ExpertOutput<T>& output, bool pairs, const Tile& tile, const float (&sums)[128],
                           float* patch, int row, int lane) {
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
        Patch::store(patch, 0, 8 * j, lane, pairs ? a[0] : b[0], pairs ? a[1] : b[1], pairs ? a[2] : b[2],
                     pairs ? a[3] : b[3]);
      }
    }
    __syncwarp();
    const int taken = output.sums_per_vector();
    const int64_t column = (int64_t{tile.column_block} * HopperTile::COLUMNS + part * DOT_COLUMNS) / taken * VECTOR;
    write_patch<16, DOT_COLUMNS>(output, tile.group, tile.first_row + row, tile.rows - row, column, patch, lane);
    __syncwarp();
  }
}

#endif

}  // namespace moe::cuda
