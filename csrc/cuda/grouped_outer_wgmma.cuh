// The sum of a[n] ⊗ b[n] over each expert's rows on Hopper: the same product as grouped_outer.cuh by wgmma.
//
// A block computes 128 x 256 elements of one expert's matrix, tile after tile, and walks down the expert's rows, 64 at
// a time. Both operands are copied by the producers' threads and not by the copy engine, which could not stop at an
// expert's last row: what lies behind it may be NaN.
#pragma once

#include "cuda/grouped_outer.cuh"
#include "cuda/hopper_tile.cuh"

namespace moe::cuda {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MOE_EMULATE)

struct OuterPlace {
  int32_t expert, a_block, b_block;

  template <typename T>
  MOE_DEVICE OuterPlace(const OuterProduct<T>& p, int64_t tile) {
    const int64_t of_expert = int64_t{p.a_blocks} * p.b_blocks;
    const int32_t rest = static_cast<int32_t>(tile % of_expert);
    expert = static_cast<int32_t>(tile / of_expert), a_block = rest % p.a_blocks, b_block = rest / p.a_blocks;
  }
};

// A thread's part of one operand: four rows of each 64, in each of the tile's boxes of 64 columns the same 8 of them.
template <typename T, int BOXES>
struct OuterRows {
  static constexpr int CHUNKS = HopperTile::BOX / CHUNK;
  static constexpr int ROWS_AT_ONCE = HopperTile::WARPGROUP / CHUNKS;
  static constexpr int ROWS_OF_THREAD = BLOCK_INNER / ROWS_AT_ONCE;

  const RowsOperand<T>& operand;
  int64_t column;
  int64_t row[ROWS_OF_THREAD];  // of `data`, of the stage that is copied next

  MOE_DEVICE OuterRows(const RowsOperand<T>& rows, int32_t block)
      : operand(rows),
        column(int64_t{block} * (BOXES * HopperTile::BOX) + static_cast<int>(threadIdx.x) % CHUNKS * CHUNK) {}

  // Reads the tokens one stage ahead of the copies, which would otherwise wait for them.
  MOE_DEVICE void look_up(int64_t first, int64_t end) {
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
      const T* from = operand.data + row[i] * operand.stride + column;
#pragma unroll
      for (int box = 0; box < BOXES; ++box) {
        const bool valid = row[i] >= 0 && column + box * HopperTile::BOX < operand.columns;
        ptx::copy_async(tile + box * HopperTile::BOX_BYTES + swizzled<CHUNKS>(first + i * ROWS_AT_ONCE, chunk),
                        valid ? from + box * HopperTile::BOX : operand.data, valid);
      }
    }
  }
};

template <typename T>
MOE_DEVICE void produce_outer(const OuterProduct<T>& p, int64_t tiles, Ring ring) {
  Landing landing;
  for (int64_t next = blockIdx.x; next < tiles; next += gridDim.x) {
    const OuterPlace place(p, next);
    const int64_t begin = p.offsets[place.expert], end = p.offsets[place.expert + 1];
    OuterRows<T, HopperTile::ROWS / HopperTile::BOX> a(p.a, place.a_block);
    OuterRows<T, HopperTile::COLUMNS / HopperTile::BOX> b(p.b, place.b_block);
    a.look_up(begin, end);
    b.look_up(begin, end);
    for (int64_t first = begin; first < end; first += BLOCK_INNER, ++ring.turn) {
      const SharedPtr stage = ring.tile(ring.turn);
      ptx::barrier_wait(ring.free(ring.turn), Ring::parity(ring.turn) ^ 1);
      a.copy(stage);
      b.copy(stage + HopperTile::ROWS_BYTES);
      a.look_up(first + BLOCK_INNER, end);
      b.look_up(first + BLOCK_INNER, end);
      landing.commit(ring);
    }
  }
  landing.finish(ring);
}

template <typename T>
MOE_DEVICE void consume_outer(const OuterProduct<T>& p, int64_t tiles, unsigned char* shared, Ring ring) {
  const int thread = static_cast<int>(threadIdx.x) - HopperTile::WARPGROUP, warp = thread / WARP, lane = thread % WARP;
  float* patch = reinterpret_cast<float*>(shared + HopperTile::PATCHES + warp * HopperTile::Patch::BYTES);
  float sums[128];
  for (int64_t next = blockIdx.x; next < tiles; next += gridDim.x) {
    const OuterPlace place(p, next);
    const int64_t count = p.offsets[place.expert + 1] - p.offsets[place.expert];
    if (count == 0) {
#pragma unroll
      for (int i = 0; i < 128; ++i) sums[i] = 0.0f;
    }
    multiply<T, true, true>(ring, ceil_div(count, BLOCK_INNER), thread / HopperTile::WARPGROUP, lane, sums);
    // The expert's matrix is an output whose rows are a's columns.
    ExpertOutput<T> output{};
    output.form = Form::linear;
    output.columns = p.b.columns;
    output.out = p.out + place.expert * p.a.columns * p.b.columns;
    const int64_t first = int64_t{place.a_block} * HopperTile::ROWS, left = p.a.columns - first;
    const int32_t rows = static_cast<int32_t>(left < HopperTile::ROWS ? left : HopperTile::ROWS);
    write_sums(output, false, Tile{place.expert, place.b_block, first, rows}, sums, patch, warp * 16, lane);
  }
}

#endif

// `tiles`: of all experts.
template <typename T>
__global__ void __launch_bounds__(HopperTile::THREADS, 1)
    outer_product_wgmma_kernel(const __grid_constant__ OuterProduct<T> p, int64_t tiles) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(MOE_EMULATE)
  MOE_DYNAMIC_SHARED(shared);
  Ring ring{shared_address(shared)};
  start_ring(ring, HopperTile::WARPGROUP);
  if (threadIdx.x < HopperTile::WARPGROUP) {
    ptx::give_registers<HopperTile::PRODUCER_REGISTERS>();
    produce_outer(p, tiles, ring);
  } else {
    ptx::take_registers<HopperTile::CONSUMER_REGISTERS>();
    consume_outer(p, tiles, shared, ring);
  }
#endif
}

}  // namespace moe::cuda
