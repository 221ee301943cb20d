// route: a stable counting sort of the slots by expert. Up to SLOTS_OF_ONE_BLOCK slots it is one launch; above, a first
// one counts each tile's experts, and in the second every block adds up those counts for itself, which costs less than
// a third launch. Experts are taken in ranges that fit shared memory, one range a block (blockIdx.y).
#include "cuda/kernel.h"
#include "cuda/route.h"
#include "cuda/warp.cuh"

namespace moe::cuda {
namespace {

constexpr int MOST_THREADS = 1024;
constexpr int MOST_WARPS = MOST_THREADS / WARP;
// Slots that a thread takes in one round.
constexpr int ITEMS = 4;
constexpr int RANGE = 512;
constexpr int64_t SLOTS_OF_ONE_BLOCK = int64_t{MOST_THREADS} * ITEMS;
constexpr int64_t MOST_TILES = 64;
constexpr int64_t SMALLEST_TILE = MOST_THREADS;
constexpr int32_t NOBODY = -1;

struct RouteArgs {
  const void* indices;
  bool wide;  // int64
  int64_t slots;
  int32_t experts, experts_per_token;
  int64_t tile;     // slots
  int32_t* counts;  // (tiles, E), or null: one tile
  int32_t* offsets;
  int32_t* row_token;
  int32_t* slot_row;

  // The slot's expert, or NOBODY.
  MOE_DEVICE int32_t expert(int64_t slot) const {
    const int64_t index =
        wide ? static_cast<const int64_t*>(indices)[slot] : int64_t{static_cast<const int32_t*>(indices)[slot]};
    return index >= 0 && index < experts ? static_cast<int32_t>(index) : NOBODY;
  }
};

// The lanes with the same value below 2^bits, of the lanes for which `takes_part` holds. All lanes call it.
MOE_DEVICE uint32_t lanes_alike(uint32_t value, bool takes_part, int bits) {
  uint32_t alike = __ballot_sync(ALL_LANES, takes_part);
  for (int bit = 0; bit < bits; ++bit) {
    const bool set = value >> bit & 1;
    const uint32_t ballot = __ballot_sync(ALL_LANES, set);
    alike &= set ? ballot : ~ballot;
  }
  return alike;
}

MOE_DEVICE int bits_of(int values) { return values <= 1 ? 0 : WARP - __clz(values - 1); }

// counts[e - first] += slots of expert e in [begin, end), for the experts of a range; and how many slots have an expert
// below the range, or any. All threads call it; `counts` is shared and zero, and can be read after the next barrier.
struct Others {
  int32_t below, valid;
};
MOE_DEVICE Others count_experts(const RouteArgs& a, int64_t begin, int64_t end, int first, int range, int32_t* counts) {
  const int bits = bits_of(range);
  Others others{0, 0};
  // Whole warps go round together.
  for (int64_t slot = begin + threadIdx.x; slot - threadIdx.x % WARP < end; slot += blockDim.x) {
    const int32_t e = slot < end ? a.expert(slot) : NOBODY;
    others.below += e != NOBODY && e < first;
    others.valid += e != NOBODY;
    const bool mine = e >= first && e < first + range;
    const uint32_t alike = lanes_alike(static_cast<uint32_t>(e - first), mine, bits);
    // One lane adds for all that are alike: a sum of integers, the same in any order.
    if (mine && (alike & lanes_before(threadIdx.x % WARP)) == 0) atomicAdd(counts + (e - first), __popc(alike));
  }
  return others;
}

__global__ void __launch_bounds__(MOST_THREADS, 1) route_count_kernel(RouteArgs a) {
  MOE_SHARED(int32_t, counts, [RANGE]);
  const int first = blockIdx.y * RANGE, range = min(RANGE, a.experts - first);
  for (int e = threadIdx.x; e < range; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * a.tile;
  count_experts(a, begin, min(begin + a.tile, a.slots), first, range, counts);
  __syncthreads();
  for (int e = threadIdx.x; e < range; e += blockDim.x)
    a.counts[int64_t{blockIdx.x} * a.experts + first + e] = counts[e];
}

// The sum over the block, for all threads. A barrier stands before and after its use of `words`.
MOE_DEVICE int32_t block_sum(int32_t value, int32_t* words) {
  value = __reduce_add_sync(ALL_LANES, value);
  if (threadIdx.x % WARP == 0) words[threadIdx.x / WARP] = value;
  __syncthreads();
  int32_t sum = 0;
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / WARP; ++warp) sum += words[warp];
  __syncthreads();
  return sum;
}

// start[e] = `begin` + the sum of total[0 .. e), for e < range. All threads call it.
MOE_DEVICE void exclusive_scan(const int32_t* total, int32_t* start, int range, int32_t begin, int32_t* words) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int first = 0; first < range; first += blockDim.x) {
    const int e = first + threadIdx.x;
    const int32_t value = e < range ? total[e] : 0;
    int32_t sum = value;
#pragma unroll
    for (int step = 1; step < WARP; step *= 2) {
      const int32_t before = __shfl_up_sync(ALL_LANES, sum, step);
      if (lane >= step) sum += before;
    }
    if (lane == WARP - 1) words[warp] = sum;
    __syncthreads();
    int32_t earlier = begin;
    for (int other = 0; other < static_cast<int>(blockDim.x) / WARP; ++other) {
      if (other < warp) earlier += words[other];
      begin += words[other];
    }
    if (e < range) start[e] = earlier + sum - value;
    __syncthreads();
  }
}

// One tile and one range of experts a block. The counts of a round are below 2^16.
__global__ void __launch_bounds__(MOST_THREADS, 1) route_kernel(RouteArgs a) {
  MOE_SHARED(uint16_t, warp_count, [MOST_WARPS * RANGE]);
  MOE_SHARED(int32_t, total, [RANGE]);
  MOE_SHARED(int32_t, next, [RANGE]);    // the row of the expert's next slot
  MOE_SHARED(int32_t, before, [RANGE]);  // slots of the expert in earlier tiles
  MOE_SHARED(int32_t, words, [MOST_WARPS]);
  const int threads = blockDim.x, warps = threads / WARP, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int first = blockIdx.y * RANGE, range = min(RANGE, a.experts - first), bits = bits_of(range);
  const int64_t begin = blockIdx.x * a.tile, end = min(begin + a.tile, a.slots);

  for (int e = threadIdx.x; e < range; e += threads) total[e] = before[e] = 0;
  __syncthreads();
  Others others{0, 0};
  if (a.counts) {
    // Slices of the tiles, so that all threads load and few loads wait for one another.
    const int columns = (range + WARP - 1) / WARP * WARP, slices = max(threads / columns, 1);
    const int slice = static_cast<int>(threadIdx.x) / columns;
    for (int e = threadIdx.x % columns; e < range && slice < slices; e += min(columns, threads)) {
      int32_t sum = 0, earlier = 0;
#pragma unroll 8
      for (int tile = slice; tile < static_cast<int>(gridDim.x); tile += slices) {
        const int32_t count = a.counts[int64_t{tile} * a.experts + first + e];
        sum += count;
        earlier += tile < static_cast<int>(blockIdx.x) ? count : 0;
      }
      atomicAdd(total + e, sum);
      atomicAdd(before + e, earlier);
      others.valid += sum;
    }
    // What the other ranges have; with one range, nothing.
    for (int e = threadIdx.x; e < a.experts; e += threads) {
      if (e >= first && e < first + range) continue;
      int32_t sum = 0;
      for (int tile = 0; tile < static_cast<int>(gridDim.x); ++tile) sum += a.counts[int64_t{tile} * a.experts + e];
      others.valid += sum;
      others.below += e < first ? sum : 0;
    }
  } else {
    others = count_experts(a, begin, end, first, range, total);
  }
  const int32_t valid = block_sum(others.valid, words), below = first ? block_sum(others.below, words) : 0;
  exclusive_scan(total, next, range, below, words);
  if (blockIdx.x == 0)
    for (int e = threadIdx.x; e < range; e += threads) a.offsets[first + e] = next[e];
  if (blockIdx.x == 0 && first + range == a.experts && threadIdx.x == 0) a.offsets[a.experts] = valid;
  for (int e = threadIdx.x; e < range; e += threads) next[e] += before[e];

  // Fewer items where they suffice, so that all warps have some.
  const int items = static_cast<int>(min(int64_t{ITEMS}, (end - begin + threads - 1) / threads));
  for (int64_t round = begin; round < end; round += int64_t{threads} * items) {
    for (int i = threadIdx.x; i < warps * range; i += threads) warp_count[i] = 0;
    __syncthreads();
    // A warp's slots lie side by side, 32 at a time: the order of warps, items and lanes is that of the slots.
    const int64_t mine = round + int64_t{warp} * WARP * items + lane;
    int32_t expert[ITEMS], rank[ITEMS];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) expert[i] = i < items && mine + i * WARP < end ? a.expert(mine + i * WARP) : NOBODY;
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      if (i >= items) break;
      const int32_t e = expert[i] - first;
      const bool in_range = expert[i] != NOBODY && e >= 0 && e < range;
      const uint32_t alike = lanes_alike(static_cast<uint32_t>(e), in_range, bits);
      const uint32_t earlier = alike & lanes_before(lane);
      uint16_t* count = warp_count + warp * range + (in_range ? e : 0);
      rank[i] = in_range ? *count + __popc(earlier) : 0;
      __syncwarp();
      if (in_range && earlier == 0) *count = static_cast<uint16_t>(*count + __popc(alike));
      __syncwarp();
    }
    __syncthreads();
    for (int e = threadIdx.x; e < range; e += threads) {
      int32_t sum = 0;
      for (int other = 0; other < warps; ++other) {
        uint16_t* count = warp_count + other * range + e;
        const uint16_t its = *count;
        *count = static_cast<uint16_t>(sum);
        sum += its;
      }
      total[e] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      const int64_t slot = mine + i * WARP;
      const int32_t e = expert[i] - first;
      if (i >= items || slot >= end) continue;
      if (expert[i] == NOBODY) {
        if (first == 0) a.slot_row[slot] = -1;
      } else if (e >= 0 && e < range) {
        const int32_t row = next[e] + warp_count[warp * range + e] + rank[i];
        a.slot_row[slot] = row;
        a.row_token[row] =
            static_cast<int32_t>(static_cast<uint32_t>(slot) / static_cast<uint32_t>(a.experts_per_token));
      }
    }
    __syncthreads();
    for (int e = threadIdx.x; e < range; e += threads) next[e] += total[e];
  }

  // Rows of nobody; each tile owns as many rows as it has slots.
  if (first == 0)
    for (int64_t row = begin + threadIdx.x; row < end; row += threads)
      if (row >= valid) a.row_token[row] = 0;
}

struct Tiles {
  int64_t tiles, slots;
};

Tiles tiles_of(int64_t slots) {
  if (slots <= SLOTS_OF_ONE_BLOCK) return {1, slots};
  int64_t tile = (slots + MOST_TILES - 1) / MOST_TILES;
  tile = (tile + SMALLEST_TILE - 1) / SMALLEST_TILE * SMALLEST_TILE;
  return {(slots + tile - 1) / tile, tile};
}

}  // namespace

int64_t route_scratch(int64_t slots, int64_t experts) {
  const Tiles tiles = tiles_of(slots);
  return tiles.tiles == 1 ? 0 : tiles.tiles * experts;
}

void route(const TensorView& indices, const TensorView& offsets, const TensorView& row_token,
           const TensorView& slot_row, const TensorView& scratch, int device, cudaStream_t stream) {
  const int64_t slots = indices.numel(), experts = offsets.shape[0] - 1;
  const Tiles tiles = tiles_of(slots);
  const RouteArgs a{indices.data,
                    indices.dtype == DType::i64,
                    slots,
                    static_cast<int32_t>(experts),
                    static_cast<int32_t>(indices.shape[1] > 0 ? indices.shape[1] : 1),
                    tiles.slots,
                    tiles.tiles > 1 ? scratch.as<int32_t>() : nullptr,
                    offsets.as<int32_t>(),
                    row_token.as<int32_t>(),
                    slot_row.as<int32_t>()};
  DeviceGuard guard(device);
  const dim3 grid(static_cast<uint32_t>(tiles.tiles), static_cast<uint32_t>((experts + RANGE - 1) / RANGE));
  const uint32_t threads = slots <= MOST_THREADS ? 256 : MOST_THREADS;
  if (tiles.tiles > 1) launch("route", route_count_kernel, grid, threads, 0, stream, a);
  launch("route", route_kernel, grid, threads, 0, stream, a);
}

void load_route() {
  load_kernel(route_count_kernel);
  load_kernel(route_kernel);
}

}  // namespace moe::cuda
