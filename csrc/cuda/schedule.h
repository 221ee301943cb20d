// Which tile of the output a block computes. Plain C++, so that it is tested without a GPU.
//
// Rows are N, sorted by expert; group e is the rows offsets[e] to offsets[e + 1]. The rows that no expert owns are one
// more group, with the number E: their output is zero. The host never learns the offsets, so it launches as many blocks
// as the tiles could be at most, and a block behind the last tile has nothing to do.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MOE_PLAIN __host__ __device__ inline
#else
#define MOE_PLAIN inline
#endif

namespace moe::cuda {

struct Groups {
  const int32_t* offsets;  // (E + 1)
  int32_t experts;
  int64_t rows;  // N

  MOE_PLAIN int64_t first(int32_t group) const { return offsets[group]; }
  MOE_PLAIN int64_t end(int32_t group) const { return group < experts ? offsets[group + 1] : rows; }
};

struct Tile {
  int32_t group;
  int32_t column_block;
  int64_t first_row;
  int32_t rows;
};

// Row tiles of a band: tiles that follow each other share weights along a band and rows across it.
constexpr int32_t BAND = 8;

MOE_PLAIN int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The most row tiles that any offsets can give: a group with rows has at most one tile that is not full.
MOE_PLAIN int64_t most_row_tiles(int64_t rows, int32_t experts, int32_t block_rows) {
  const int64_t groups = rows < experts + 1 ? rows : experts + 1;
  return rows / block_rows + groups;
}

// The tile with the number `local` among those of a group: down the rows of a band, then to the next column block.
MOE_PLAIN Tile tile_of_group(const Groups& groups, int32_t group, int64_t local, int32_t block_rows,
                             int32_t column_blocks) {
  const int64_t first = groups.first(group), count = groups.end(group) - first;
  const int64_t row_tiles = ceil_div(count, block_rows);
  const int64_t band = local / (int64_t{BAND} * column_blocks), rest = local - band * BAND * column_blocks;
  const int64_t left = row_tiles - band * BAND, height = left < BAND ? left : BAND;
  const int64_t row = (band * BAND + rest % height) * block_rows;
  const int64_t rows = count - row < block_rows ? count - row : block_rows;
  return {group, static_cast<int32_t>(rest / height), first + row, static_cast<int32_t>(rows)};
}

// Where a search through the groups stands: `row_tiles` belong to the groups before `group`.
struct Position {
  int32_t group = 0;
  int64_t row_tiles = 0;
};

// The tile with the number `tile`, searched from `position`, which must not be behind it. False behind the last tile.
MOE_PLAIN bool find_tile(const Groups& groups, int64_t tile, int32_t block_rows, int32_t column_blocks,
                         Position& position, Tile& found) {
  for (; position.group <= groups.experts; ++position.group) {
    const int64_t count = groups.end(position.group) - groups.first(position.group);
    const int64_t after = position.row_tiles + ceil_div(count, block_rows);
    if (tile < after * column_blocks) {
      found =
          tile_of_group(groups, position.group, tile - position.row_tiles * column_blocks, block_rows, column_blocks);
      return true;
    }
    position.row_tiles = after;
  }
  return false;
}

}  // namespace moe::cuda
