// The choice of K experts by a warp: in descending order, ties to the lower index, limited to the best groups.
// A choice is a key (see `ordered`), as each lane keeps them for its experts; 0 is an expert that cannot be chosen.
#pragma once

#include "cuda/warp.cuh"

namespace moe::cuda {

// A taken expert's key is its rank + 1, which is below the key of -inf: it is never taken again.
constexpr uint32_t LOWEST_KEY = 0x007fffffu;

template <int V>
MOE_DEVICE void choose(uint32_t (&key)[V], int k, int lane) {
  for (int rank = 0; rank < k; ++rank) {
    uint32_t best = 0;
    int at = 0;
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (key[i] > best) {
        best = key[i];
        at = i;
      }
    const uint32_t most = __reduce_max_sync(ALL_LANES, best);
    const uint32_t mine = best == most ? static_cast<uint32_t>(at * WARP + lane) : 0xffffffffu;
    const uint32_t winner = __reduce_min_sync(ALL_LANES, mine);
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (static_cast<uint32_t>(i * WARP + lane) == winner) key[i] = static_cast<uint32_t>(rank + 1);
  }
}

// Words of shared memory that a warp needs to compare groups.
MOE_HOST_DEVICE int group_words(int experts, int groups) { return experts + experts / WARP + 1 + groups; }

// Spread over the banks: lanes read at distances of a group's size, often a multiple of 32.
MOE_DEVICE int spread(int expert) { return expert + expert / WARP; }

// Sets the keys of all but the `top_groups` best groups to 0. A group's score is its best choice, or the sum of its two
// best ones; equal scores go to the lower group. `words` is this warp's.
template <int V>
MOE_DEVICE void keep_groups(uint32_t (&key)[V], uint32_t* words, int experts, int groups, int top_groups, bool sum_two,
                            int lane) {
  uint32_t* score = words + spread(experts - 1) + 1;
  const int size = experts / groups;
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (i * WARP + lane < experts) words[spread(i * WARP + lane)] = key[i];
  __syncwarp();
  for (int group = lane; group < groups; group += WARP) {
    uint32_t first = 0, second = 0;
    for (int e = group * size; e < (group + 1) * size; ++e) {
      const uint32_t next = words[spread(e)];
      second = next > first ? first : (next > second ? next : second);
      first = next > first ? next : first;
    }
    score[group] = sum_two && size > 1 ? ordered(from_ordered(first) + from_ordered(second)) : first;
  }
  __syncwarp();
  // The choices are in registers: their place takes whether a group is kept.
  for (int group = lane; group < groups; group += WARP) {
    const uint32_t mine = score[group];
    int before = 0;
    for (int other = 0; other < groups; ++other)
      before += score[other] > mine || (score[other] == mine && other < group);
    words[group] = before < top_groups;
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (i * WARP + lane < experts && !words[(i * WARP + lane) / size]) key[i] = 0;
  // The next token writes here.
  __syncwarp();
}

}  // namespace moe::cuda
