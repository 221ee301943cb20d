// Entries of topk_gating.cu and topk_gating_backward.cu. All work is queued on `stream`; nothing is synchronized.
#pragma once

#include <cuda_runtime_api.h>

#include "common/view.h"

namespace moe::cuda {

// A lane of a warp keeps up to 32 experts in registers.
constexpr int64_t MOST_EXPERTS = 1024;

struct GatingOptions {
  int64_t k;
  bool sigmoid;
  int64_t num_groups;
  int64_t top_groups;
  bool renormalize;
  float scale;
};

// Words of 4 bytes that topk_gating needs as scratch.
int64_t topk_gating_scratch(int64_t tokens, int64_t experts);

// logits (T, E) with unit columns; bias (E) float32, noise (T, E) and mask (T) bool or null -> weights (T, K) float32,
// indices (T, K) int32, counts (E), mean_probability (E), z () and entropy (), all float32
void topk_gating(const TensorView& logits, const TensorView* bias, const TensorView* noise, const TensorView* mask,
                 const GatingOptions& options, const TensorView& weights, const TensorView& indices,
                 const TensorView& counts, const TensorView& mean_probability, const TensorView& z,
                 const TensorView& entropy, const TensorView& scratch, int device, cudaStream_t stream);

// The gradients of the outputs, float32, and what the forward had and gave -> grad_logits (T, E), contiguous
void topk_gating_backward(const TensorView& grad_weights, const TensorView& grad_mean_probability,
                          const TensorView& grad_z, const TensorView& grad_entropy, const TensorView& logits,
                          const TensorView* noise, const TensorView* mask, const TensorView& weights,
                          const TensorView& indices, bool sigmoid, bool renormalize, float scale,
                          const TensorView& grad_logits, int device, cudaStream_t stream);

// Load the kernels onto the current device.
void load_topk_gating();
void load_topk_gating_backward();

}  // namespace moe::cuda
