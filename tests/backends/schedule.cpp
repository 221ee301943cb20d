// The tile scheduler of csrc/cuda/schedule.h: every row and column once, for any offsets; and its search by a warp.
// Exit status 0 when all agree; otherwise one line for each difference.
#include "cuda/schedule.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/find_tile.cuh"

using namespace moe::cuda;

static int failures = 0;

static void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("%s\n", what.c_str());
}

struct Case {
  const char* name;
  std::vector<int32_t> offsets;
  int64_t rows;
};

static std::vector<Case> cases() {
  std::vector<Case> all = {{"one expert", {0, 5}, 5},           {"no rows", {0, 0, 0}, 0},
                           {"only sentinels", {0, 0, 0}, 40},   {"one huge expert", {0, 0, 1000, 1000, 1000}, 1000},
                           {"whole tiles", {0, 128, 256}, 256}, {"sentinels behind", {0, 3, 3, 140}, 200}};
  std::mt19937 random(0);
  for (int E : {1, 3, 31, 32, 33, 70, 256})
    for (int most : {1, 7, 300}) {
      Case c{"random", {0}, 0};
      for (int e = 0; e < E; ++e)
        c.offsets.push_back(c.offsets.back() + (random() % 3 ? static_cast<int32_t>(random() % (most + 1)) : 0));
      c.rows = c.offsets.back() + static_cast<int64_t>(random() % 50);
      all.push_back(c);
    }
  return all;
}

struct Found {
  bool any;
  Tile tile;
};

__global__ void search_kernel(Groups groups, int64_t tiles, int64_t step, int32_t block_rows, int32_t column_blocks,
                              Found* found) {
  Position position;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += step) {
    Tile place{};
    const bool any = find_tile_by_warp(groups, tile, block_rows, column_blocks, position, place);
    // Lane 31 has no part in the answer but gets it too.
    if (threadIdx.x == 31) found[tile] = {any, place};
    if (!any) break;
  }
}

static bool same(const Tile& a, const Tile& b) {
  return a.group == b.group && a.column_block == b.column_block && a.first_row == b.first_row && a.rows == b.rows;
}

static void check(const Case& c, int32_t block_rows, int32_t column_blocks) {
  const std::string where = std::string(c.name) + ", " + std::to_string(c.offsets.size() - 1) + " experts, " +
                            std::to_string(c.rows) + " rows, tiles of " + std::to_string(block_rows) + ", " +
                            std::to_string(column_blocks) + " column blocks: ";
  const Groups groups{c.offsets.data(), static_cast<int32_t>(c.offsets.size() - 1), c.rows};
  const int64_t most = most_row_tiles(c.rows, groups.experts, block_rows) * column_blocks;
  std::vector<int> covered(static_cast<size_t>(c.rows * column_blocks));
  std::vector<Found> plain;
  bool ended = false;
  for (int64_t id = 0; id < most + 3; ++id) {
    Position position;
    Found found{};
    found.any = find_tile(groups, id, block_rows, column_blocks, position, found.tile);
    plain.push_back(found);
    expect(!(ended && found.any), where + "a tile behind the last one");
    ended = !found.any;
    if (!found.any) continue;
    const Tile& t = found.tile;
    expect(id < most, where + "more tiles than the bound");
    const bool inside = t.rows >= 1 && t.rows <= block_rows && t.first_row >= groups.first(t.group) &&
                        t.first_row + t.rows <= groups.end(t.group) && t.column_block >= 0 &&
                        t.column_block < column_blocks;
    expect(inside, where + "a tile is not inside its group");
    if (!inside) return;
    for (int64_t row = t.first_row; row < t.first_row + t.rows; ++row)
      ++covered[static_cast<size_t>(row * column_blocks + t.column_block)];
  }
  for (int count : covered) expect(count == 1, where + "covered " + std::to_string(count) + " times");

  // Persistent blocks: the search goes on where it stood.
  for (int64_t step : {int64_t{1}, int64_t{5}}) {
    std::vector<Found> by_warp(plain.size());
    moe::emulate::launch(dim3(static_cast<unsigned>(step)), dim3(32), 0, search_kernel, groups,
                         static_cast<int64_t>(plain.size()), step, block_rows, column_blocks, by_warp.data());
    for (size_t id = 0; id < plain.size(); ++id)
      expect(by_warp[id].any == plain[id].any && (!plain[id].any || same(by_warp[id].tile, plain[id].tile)),
             where + "the warp's search differs at tile " + std::to_string(id));
  }
}

int main() {
  for (const Case& c : cases())
    for (int32_t block_rows : {16, 128})
      for (int32_t column_blocks : {1, 3}) check(c, block_rows, column_blocks);
  std::printf("%d differences\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
