// topk_gating, backward: one warp a token. With p the softmax, g_P, g_z and g_H the gradients of the mean probability,
// z and entropy, and M the number of tokens that count, the statistics give
//   (p (g_P - <p, g_P>) + 2 logsumexp p g_z - g_H p (log p + H)) / M
// and the weights their softmax's, sigmoid's or quotient's rule at the chosen experts.
#include "cuda/kernel.h"
#include "cuda/topk_gating.cuh"
#include "cuda/topk_gating.h"

namespace moe::cuda {
namespace {

constexpr int64_t MOST_BLOCKS = 528;

struct GatingBackwardArgs {
  LogitRows rows;
  const float* grad_weights;
  const float* grad_mean_probability;
  const float* grad_z;
  const float* grad_entropy;
  const uint8_t* mask;
  const float* weights;
  const int32_t* indices;
  void* grad_logits;
  int32_t k;
  bool sigmoid, renormalize;
  float scale;
};

// How many tokens count, at least one. All threads of the block call it.
MOE_DEVICE float counted_tokens(const uint8_t* mask, int64_t tokens) {
  MOE_SHARED(int32_t, warp_count, [GATING_WARPS]);
  if (!mask) return static_cast<float>(tokens > 1 ? tokens : 1);
  int32_t count = 0;
#pragma unroll 8
  for (int64_t token = threadIdx.x; token < tokens; token += GATING_THREADS) count += mask[token] != 0;
  count = __reduce_add_sync(ALL_LANES, count);
  if (threadIdx.x % WARP == 0) warp_count[threadIdx.x / WARP] = count;
  __syncthreads();
  count = 0;
  for (int warp = 0; warp < GATING_WARPS; ++warp) count += warp_count[warp];
  return static_cast<float>(count > 1 ? count : 1);
}

// What the weights' gradient gives to each chosen expert's logit, written to chosen[expert]; without renormalization of
// a softmax, the gradient of the expert's probability instead. The other entries stay zero.
MOE_DEVICE void chosen_gradients(const GatingBackwardArgs& a, int64_t token, float* chosen, int lane) {
  const int64_t first = token * a.k;
  float centre = 0.0f, sum = 0.0f;
  if (a.renormalize) {
    for (int i = lane; i < a.k; i += WARP) {
      const float share = a.scale != 0.0f ? a.weights[first + i] / a.scale : 0.0f;
      centre += a.grad_weights[first + i] * a.scale * share;
      const int32_t expert = a.indices[first + i];
      if (a.sigmoid && static_cast<uint32_t>(expert) < static_cast<uint32_t>(a.rows.experts))
        sum += sigmoid(a.rows.at(token, expert));
    }
    centre = warp_sum(centre);
    sum = warp_sum(sum) + SIGMOID_EPSILON;
  }
  for (int i = lane; i < a.k; i += WARP) {
    const int32_t expert = a.indices[first + i];
    if (static_cast<uint32_t>(expert) >= static_cast<uint32_t>(a.rows.experts)) continue;
    const float g = a.grad_weights[first + i] * a.scale;
    const float s = a.sigmoid ? sigmoid(a.rows.at(token, expert)) : 0.0f;
    const float share = a.renormalize && a.scale != 0.0f ? a.weights[first + i] / a.scale : 0.0f;
    if (!a.renormalize)
      chosen[expert] = a.sigmoid ? g * s * (1.0f - s) : g;
    else
      chosen[expert] = a.sigmoid ? (g - centre) * s * (1.0f - s) / sum : share * (g - centre);
  }
}

template <int V>
struct StoreRow {
  const float (&value)[V];
  void* data;
  int64_t first;
  int experts, lane;

  template <typename T>
  MOE_DEVICE void run() const {
    T* row = static_cast<T*>(data) + first;
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (i * WARP + lane < experts) row[i * WARP + lane] = from_float<T>(value[i]);
  }
};

template <int V>
__global__ void __launch_bounds__(GATING_THREADS, blocks_per_sm(V)) topk_gating_backward_kernel(GatingBackwardArgs a) {
  MOE_DYNAMIC_SHARED(shared);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, E = a.rows.experts;
  float* chosen = reinterpret_cast<float*>(shared) + warp * E;
  const float M = counted_tokens(a.mask, a.rows.tokens), gz = *a.grad_z, gh = *a.grad_entropy;
  float gp[V];
#pragma unroll
  for (int i = 0; i < V; ++i) gp[i] = i * WARP + lane < E ? a.grad_mean_probability[i * WARP + lane] : 0.0f;

  for (int64_t token = int64_t{blockIdx.x} * GATING_WARPS + warp; token < a.rows.tokens;
       token += int64_t{gridDim.x} * GATING_WARPS) {
    float logit[V], p[V], grad[V];
    // Each lane its own experts, which it alone has read for the token before.
    for (int e = lane; e < E; e += WARP) chosen[e] = 0.0f;
    __syncwarp();
    chosen_gradients(a, token, chosen, lane);
    load_row(logit, a.rows, token, lane);
    const RowStatistics row = softmax(p, logit);
    __syncwarp();

    float inner = 0.0f, inner_chosen = 0.0f;
    const bool of_probability = !a.sigmoid && !a.renormalize;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      // Past E, where p is zero but in a broken row.
      if (i * WARP + lane >= E) continue;
      inner += p[i] * gp[i];
      if (of_probability) inner_chosen += p[i] * chosen[i * WARP + lane];
    }
    inner = warp_sum(inner);
    inner_chosen = warp_sum(inner_chosen);
    const bool counts = !a.mask || a.mask[token];
#pragma unroll
    for (int i = 0; i < V; ++i) {
      grad[i] = 0.0f;
      if (i * WARP + lane >= E) continue;
      float log_p = 0.0f;
      if (p[i] > 0.0f) log_p = row.logsumexp == INFINITY ? logf(p[i]) : logit[i] - row.logsumexp;
      const float sum = p[i] * (gp[i] - inner) + 2.0f * row.logsumexp * p[i] * gz - gh * p[i] * (log_p + row.entropy);
      if (counts) grad[i] = sum / M;
      const float mine = chosen[i * WARP + lane];
      grad[i] += of_probability ? p[i] * (mine - inner_chosen) : mine;
    }
    by_type(a.rows.logits_dtype, StoreRow<V>{grad, a.grad_logits, token * E, E, lane});
  }
}

struct Backward {
  const GatingBackwardArgs& a;
  cudaStream_t stream;

  template <int V>
  void run() const {
    const int64_t blocks = (a.rows.tokens + GATING_WARPS - 1) / GATING_WARPS;
    launch("topk_gating_backward", topk_gating_backward_kernel<V>,
           static_cast<uint32_t>(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS), GATING_THREADS,
           GATING_WARPS * sizeof(float) * a.rows.experts, stream, a);
  }
};

struct LoadBackward {
  template <int V>
  void run() const {
    load_kernel(topk_gating_backward_kernel<V>);
  }
};

}  // namespace

void topk_gating_backward(const TensorView& grad_weights, const TensorView& grad_mean_probability,
                          const TensorView& grad_z, const TensorView& grad_entropy, const TensorView& logits,
                          const TensorView* noise, const TensorView* mask, const TensorView& weights,
                          const TensorView& indices, bool sigmoid, bool renormalize, float scale,
                          const TensorView& grad_logits, int device, cudaStream_t stream) {
  if (logits.numel() == 0) return;
  const GatingBackwardArgs a{logit_rows(logits, noise),
                             grad_weights.as<const float>(),
                             grad_mean_probability.as<const float>(),
                             grad_z.as<const float>(),
                             grad_entropy.as<const float>(),
                             mask ? mask->as<const uint8_t>() : nullptr,
                             weights.as<const float>(),
                             indices.as<const int32_t>(),
                             grad_logits.data,
                             static_cast<int32_t>(indices.shape[1]),
                             sigmoid,
                             renormalize,
                             scale};
  DeviceGuard guard(device);
  by_experts(a.rows.experts, Backward{a, stream});
}

void load_topk_gating_backward() {
  for (int64_t experts : {32, 64, 128, 256, 512, 1024}) by_experts(experts, LoadBackward{});
}

}  // namespace moe::cuda
