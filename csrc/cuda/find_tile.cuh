// The search of schedule.h by a warp: 32 groups at a time.
#pragma once

#include "cuda/kernel.h"
#include "cuda/schedule.h"

namespace moe::cuda {

// Called by whole warps, with the same arguments in all lanes; every lane gets the result.
MOE_DEVICE bool find_tile_by_warp(const Groups& groups, int64_t tile, int32_t block_rows, int32_t column_blocks,
                                  Position& position, Tile& found) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  while (position.group <= groups.experts) {
    const int32_t group = position.group + lane;
    int32_t own = 0;
    if (group <= groups.experts)
      own = static_cast<int32_t>(ceil_div(groups.end(group) - groups.first(group), block_rows));
    int32_t through = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t before = __shfl_up_sync(0xffffffffu, through, step);
      if (lane >= step) through += before;
    }
    const unsigned behind = __ballot_sync(0xffffffffu, tile < (position.row_tiles + through) * column_blocks);
    if (behind) {
      const int owner = __ffs(static_cast<int>(behind)) - 1;
      position.row_tiles += __shfl_sync(0xffffffffu, through - own, owner);
      position.group += owner;
      found =
          tile_of_group(groups, position.group, tile - position.row_tiles * column_blocks, block_rows, column_blocks);
      return true;
    }
    position.row_tiles += __shfl_sync(0xffffffffu, through, 31);
    position.group += 32;
  }
  return false;
}

}  // namespace moe::cuda
