// topk_gating, forward: one warp a token, with the statistics of the auxiliary losses in the same pass. A block adds
// its tokens' statistics in a fixed order, a second kernel those of the blocks: no atomics, the same bits in every run.
#include "cuda/kernel.h"
#include "cuda/topk_choice.cuh"
#include "cuda/topk_gating.cuh"
#include "cuda/topk_gating.h"

namespace moe::cuda {
namespace {

// A block finishes alone with so few tokens: the second launch would cost more than their being in a row.
constexpr int64_t TOKENS_OF_ONE_BLOCK = 2 * GATING_WARPS;
// Two blocks for each multiprocessor of an H100 or H200. Fixed, so that the order of the sums is.
constexpr int64_t MOST_BLOCKS = 264;
constexpr int FINISH_SLICES = 16;

// Sums over tokens, E or one a block; `tokens` counts those that the mask lets through.
struct Sums {
  float* mass;
  int32_t* counts;
  float* squared_lse;
  float* entropy;
  int32_t* tokens;

  MOE_DEVICE Sums of(int64_t block, int experts) const {
    return {mass + block * experts, counts + block * experts, squared_lse + block, entropy + block, tokens + block};
  }
};

struct Statistics {
  float* counts;
  float* mean_probability;
  float* z;
  float* entropy;
};

struct GatingArgs {
  LogitRows rows;
  const float* bias;
  const uint8_t* mask;
  float* weights;
  int32_t* indices;
  Sums partial;  // of the blocks
  Statistics out;
  int32_t k, groups, top_groups;
  bool sigmoid, renormalize;
  float scale;
};

MOE_DEVICE float at_least_one(int tokens) { return static_cast<float>(tokens > 1 ? tokens : 1); }

// The weights of the experts that `key` says were taken.
template <int V>
MOE_DEVICE void weigh(const GatingArgs& a, int64_t token, const float (&logit)[V], const float (&p)[V],
                      const uint32_t (&key)[V], int lane) {
  float weight[V];
  float top = -INFINITY;
  if (a.renormalize && !a.sigmoid) {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (key[i] - 1 < LOWEST_KEY - 1) top = fmaxf(top, logit[i]);
    top = warp_max(top);
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const bool taken = key[i] - 1 < LOWEST_KEY - 1;
    if (a.sigmoid)
      weight[i] = sigmoid(logit[i]);
    else if (!a.renormalize)
      weight[i] = p[i];
    // The softmax of the chosen: the same as dividing by the sum, without the underflow of experts that only the bias
    // made win. Those of +inf share all of it.
    else if (top == INFINITY)
      weight[i] = logit[i] == INFINITY ? 1.0f : 0.0f;
    else
      weight[i] = expf(logit[i] - top);
    sum += taken ? weight[i] : 0.0f;
  }
  float divisor = 1.0f;
  if (a.renormalize) divisor = warp_sum(sum) + (a.sigmoid ? SIGMOID_EPSILON : 0.0f);
#pragma unroll
  for (int i = 0; i < V; ++i)
    if (key[i] - 1 < LOWEST_KEY - 1) {
      const int64_t slot = token * a.k + (key[i] - 1);
      a.weights[slot] = (a.renormalize ? weight[i] / divisor : weight[i]) * a.scale;
      a.indices[slot] = i * WARP + lane;
    }
}

template <int V>
MOE_DEVICE void choose_experts(const GatingArgs& a, uint32_t (&key)[V], const float (&logit)[V], const float (&p)[V],
                               uint32_t* words, int lane) {
  const int E = a.rows.experts;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int e = i * WARP + lane;
    float choice = logit[i];
    if (a.bias && e < E && fabsf(logit[i]) != INFINITY) choice = (a.sigmoid ? sigmoid(logit[i]) : p[i]) + a.bias[e];
    key[i] = e < E ? ordered(choice) : 0;
  }
  if (a.groups > 1) keep_groups(key, words, E, a.groups, a.top_groups, a.bias != nullptr, lane);
  choose(key, a.k, lane);
}

MOE_DEVICE void write_statistics(const Statistics& out, float mass, int count, int expert, float tokens) {
  out.counts[expert] = static_cast<float>(count);
  out.mean_probability[expert] = mass / tokens;
}

template <int V>
__global__ void __launch_bounds__(GATING_THREADS, blocks_per_sm(V)) topk_gating_kernel(GatingArgs a) {
  MOE_DYNAMIC_SHARED(shared);
  MOE_SHARED(float, warp_lse, [GATING_WARPS]);
  MOE_SHARED(float, warp_entropy, [GATING_WARPS]);
  MOE_SHARED(int32_t, warp_tokens, [GATING_WARPS]);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, E = a.rows.experts;
  uint32_t* words = reinterpret_cast<uint32_t*>(shared) + warp * group_words(E, a.groups);

  float mass[V] = {}, squared_lse = 0.0f, entropy = 0.0f;
  int32_t count[V] = {}, tokens = 0;
  for (int64_t token = int64_t{blockIdx.x} * GATING_WARPS + warp; token < a.rows.tokens;
       token += int64_t{gridDim.x} * GATING_WARPS) {
    float logit[V], p[V];
    uint32_t key[V];
    load_row(logit, a.rows, token, lane);
    const RowStatistics row = softmax(p, logit);
    if (row.broken) {
#pragma unroll
      for (int i = 0; i < V; ++i) key[i] = i * WARP + lane < a.k ? static_cast<uint32_t>(i * WARP + lane + 1) : 0;
      for (int i = lane; i < a.k; i += WARP) {
        a.weights[token * a.k + i] = NAN;
        a.indices[token * a.k + i] = i;
      }
    } else {
      choose_experts(a, key, logit, p, words, lane);
      weigh(a, token, logit, p, key, lane);
    }
    if (a.mask && !a.mask[token]) continue;
    squared_lse += row.logsumexp * row.logsumexp;
    entropy += row.entropy;
    ++tokens;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      mass[i] += p[i];
      count[i] += key[i] - 1 < LOWEST_KEY - 1;
    }
  }

  __syncthreads();
  float* block_mass = reinterpret_cast<float*>(shared);
  int32_t* block_count = reinterpret_cast<int32_t*>(block_mass + E);
  if (lane == 0) {
    warp_lse[warp] = squared_lse;
    warp_entropy[warp] = entropy;
    warp_tokens[warp] = tokens;
  }
  for (int turn = 0; turn < GATING_WARPS; ++turn) {
    if (warp == turn) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const int e = i * WARP + lane;
        if (e >= E) continue;
        block_mass[e] = turn ? block_mass[e] + mass[i] : mass[i];
        block_count[e] = turn ? block_count[e] + count[i] : count[i];
      }
    }
    __syncthreads();
  }
  squared_lse = entropy = 0.0f;
  tokens = 0;
  for (int other = 0; other < GATING_WARPS; ++other) {
    squared_lse += warp_lse[other];
    entropy += warp_entropy[other];
    tokens += warp_tokens[other];
  }
  const bool alone = gridDim.x == 1;
  const Sums mine = a.partial.of(blockIdx.x, E);
  for (int e = threadIdx.x; e < E; e += GATING_THREADS) {
    if (alone) {
      write_statistics(a.out, block_mass[e], block_count[e], e, at_least_one(tokens));
    } else {
      mine.mass[e] = block_mass[e];
      mine.counts[e] = block_count[e];
    }
  }
  if (threadIdx.x) return;
  *(alone ? a.out.z : mine.squared_lse) = alone ? squared_lse / at_least_one(tokens) : squared_lse;
  *(alone ? a.out.entropy : mine.entropy) = alone ? entropy / at_least_one(tokens) : entropy;
  if (!alone) *mine.tokens = tokens;
}

// 32 experts a block, the first kernel's blocks in slices; the first block adds the two scalars as well.
__global__ void __launch_bounds__(FINISH_SLICES* WARP)
    topk_gating_statistics_kernel(Sums partial, Statistics out, int blocks, int experts) {
  MOE_SHARED(float, slice_mass, [FINISH_SLICES][WARP]);
  MOE_SHARED(int32_t, slice_count, [FINISH_SLICES][WARP]);
  MOE_SHARED(int32_t, slice_tokens, [FINISH_SLICES]);
  const int slice = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int e = blockIdx.x * WARP + lane;
  float mass = 0.0f;
  int32_t count = 0, tokens = 0;
#pragma unroll 8
  for (int block = slice; block < blocks; block += FINISH_SLICES)
    if (e < experts) {
      mass += partial.mass[int64_t{block} * experts + e];
      count += partial.counts[int64_t{block} * experts + e];
    }
  for (int block = threadIdx.x; block < blocks; block += FINISH_SLICES * WARP) tokens += partial.tokens[block];
  tokens = __reduce_add_sync(ALL_LANES, tokens);
  slice_mass[slice][lane] = mass;
  slice_count[slice][lane] = count;
  if (lane == 0) slice_tokens[slice] = tokens;
  __syncthreads();
  // The first warp finishes the experts, the second the scalars.
  if (slice > 1) return;
  tokens = 0;
  for (int other = 0; other < FINISH_SLICES; ++other) tokens += slice_tokens[other];
  if (slice == 0) {
    for (int other = 1; other < FINISH_SLICES; ++other) {
      mass += slice_mass[other][lane];
      count += slice_count[other][lane];
    }
    if (e < experts) write_statistics(out, mass, count, e, at_least_one(tokens));
    return;
  }
  if (blockIdx.x) return;
  float squared_lse = 0.0f, entropy = 0.0f;
  for (int block = lane; block < blocks; block += WARP) {
    squared_lse += partial.squared_lse[block];
    entropy += partial.entropy[block];
  }
  squared_lse = warp_sum(squared_lse);
  entropy = warp_sum(entropy);
  if (lane) return;
  *out.z = squared_lse / at_least_one(tokens);
  *out.entropy = entropy / at_least_one(tokens);
}

int64_t gating_blocks(int64_t tokens) {
  if (tokens <= TOKENS_OF_ONE_BLOCK) return 1;
  const int64_t blocks = (tokens + GATING_WARPS - 1) / GATING_WARPS;
  return blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS;
}

size_t shared_bytes(int experts, int groups) {
  const size_t choice = groups > 1 ? size_t{GATING_WARPS} * group_words(experts, groups) : 0;
  const size_t sums = 2 * static_cast<size_t>(experts);
  return sizeof(uint32_t) * (choice > sums ? choice : sums);
}

struct Forward {
  const GatingArgs& a;
  int64_t blocks;
  cudaStream_t stream;

  template <int V>
  void run() const {
    launch("topk_gating", topk_gating_kernel<V>, static_cast<uint32_t>(blocks), GATING_THREADS,
           shared_bytes(a.rows.experts, a.groups), stream, a);
  }
};

struct LoadForward {
  template <int V>
  void run() const {
    load_kernel(topk_gating_kernel<V>, shared_bytes(V * WARP, V * WARP));
  }
};

}  // namespace

int64_t topk_gating_scratch(int64_t tokens, int64_t experts) {
  const int64_t blocks = gating_blocks(tokens);
  return blocks == 1 ? 0 : blocks * (2 * experts + 3);
}

void topk_gating(const TensorView& logits, const TensorView* bias, const TensorView* noise, const TensorView* mask,
                 const GatingOptions& options, const TensorView& weights, const TensorView& indices,
                 const TensorView& counts, const TensorView& mean_probability, const TensorView& z,
                 const TensorView& entropy, const TensorView& scratch, int device, cudaStream_t stream) {
  GatingArgs a{};
  a.rows = logit_rows(logits, noise);
  const int64_t E = a.rows.experts, blocks = gating_blocks(a.rows.tokens);
  if (E == 0) return;
  a.bias = bias ? bias->as<const float>() : nullptr;
  a.mask = mask ? mask->as<const uint8_t>() : nullptr;
  a.weights = weights.as<float>();
  a.indices = indices.as<int32_t>();
  a.partial.mass = scratch.as<float>();
  a.partial.counts = reinterpret_cast<int32_t*>(a.partial.mass + blocks * E);
  a.partial.squared_lse = reinterpret_cast<float*>(a.partial.counts + blocks * E);
  a.partial.entropy = a.partial.squared_lse + blocks;
  a.partial.tokens = reinterpret_cast<int32_t*>(a.partial.entropy + blocks);
  a.out = {counts.as<float>(), mean_probability.as<float>(), z.as<float>(), entropy.as<float>()};
  a.k = static_cast<int32_t>(options.k);
  a.groups = static_cast<int32_t>(options.num_groups);
  a.top_groups = static_cast<int32_t>(options.top_groups);
  a.sigmoid = options.sigmoid;
  a.renormalize = options.renormalize;
  a.scale = options.scale;
  DeviceGuard guard(device);
  by_experts(E, Forward{a, blocks, stream});
  if (blocks > 1)
    launch("topk_gating", topk_gating_statistics_kernel, static_cast<uint32_t>((E + WARP - 1) / WARP),
           FINISH_SLICES * WARP, 0, stream, a.partial, a.out, static_cast<int>(blocks), static_cast<int>(E));
}

void load_topk_gating() {
  for (int64_t experts : {32, 64, 128, 256, 512, 1024}) by_experts(experts, LoadForward{});
  load_kernel(topk_gating_statistics_kernel);
}

}  // namespace moe::cuda
