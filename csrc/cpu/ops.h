// The native entries. Tensors are validated in Python; what is checked again here is what memory safety needs.
// A null view stands for an optional argument that is absent or an output that is not wanted. Data and weights are
// float32, bfloat16 or float16, and contiguous but for the weights, which need one unit stride in their last two
// dimensions; routing weights and statistics are float32; plans are int32.
#pragma once

#include "common/view.h"
#include "isa/kernels.h"
#include "weight.h"

namespace moe {

struct GatingOptions {
  int64_t k;
  bool sigmoid;
  int64_t num_groups;
  int64_t top_groups;
  bool renormalize;
  float scale;
};

void topk_gating(const TensorView& logits, const TensorView* bias, const TensorView* noise, const TensorView* mask,
                 const GatingOptions& options, const TensorView& weights, const TensorView& indices,
                 const TensorView& counts, const TensorView& mean_probability, const TensorView& z,
                 const TensorView& entropy, int threads);

void topk_gating_backward(const TensorView& grad_weights, const TensorView& grad_mean_probability,
                          const TensorView& grad_z, const TensorView& grad_entropy, const TensorView& logits,
                          const TensorView* noise, const TensorView* mask, const TensorView& weights,
                          const TensorView& indices, bool sigmoid, bool renormalize, float scale,
                          const TensorView& grad_logits, int threads);

void route_plan(const TensorView& indices, const TensorView& offsets, const TensorView& row_token,
                const TensorView& slot_row);

// The least of int32 or int64.
int64_t lowest(const TensorView& integers);

void permute(const TensorView& x, const TensorView& offsets, const TensorView& row_token, const TensorView& out,
             int threads);
void unpermute(const TensorView& rows, const TensorView& slot_row, const TensorView* weights, const TensorView& out,
               int threads);
void unpermute_backward(const TensorView& grad, const TensorView& rows, const TensorView& slot_row,
                        const TensorView* weights, const TensorView& grad_rows, const TensorView* grad_weights,
                        int threads);

struct GroupedArguments {
  const TensorView& x;
  const Weight& w;
  const TensorView& offsets;
  const TensorView* row_token;
  const TensorView* bias;
  const TensorView* row_scale;
  const TensorView* slot_row;
  bool dynamic = false;  // see Kernels::form
};

void grouped_mm(const GroupedArguments& arguments, const TensorView* base, const TensorView& out, int threads);
void grouped_mm_backward(const TensorView& grad, const GroupedArguments& arguments, const TensorView* grad_x,
                         const TensorView* grad_w, const TensorView* grad_bias, const TensorView* grad_row_scale,
                         int threads);

struct ExpertWeights {
  const Weight& gate_up;
  const Weight& down;
  const TensorView* gate_up_bias;
  const TensorView* down_bias;
  LimitedActivation activation;
  bool interleaved;
  bool dynamic = false;  // see Kernels::form
};

// What training keeps of a forward pass.
struct Saved {
  const TensorView& pre;
  const TensorView& offsets;
  const TensorView& row_token;
  const TensorView& slot_row;
};

void fused_experts(const TensorView& x, const TensorView& indices, const TensorView& weights,
                   const ExpertWeights& experts, const TensorView& out, const Saved* saved, int threads);

struct ExpertGradients {
  const TensorView* x;
  const TensorView* weights;
  const TensorView* gate_up;
  const TensorView* down;
  const TensorView* gate_up_bias;
  const TensorView* down_bias;
  bool add = false;     // gate_up's and down's are added to what is there
  bool stream = false;  // or else they go past the caches: their memory was in use before
};

void fused_experts_backward(const TensorView& grad, const TensorView& x, const TensorView& weights,
                            const ExpertWeights& experts, const Saved& saved, const ExpertGradients& gradients,
                            int threads);

}  // namespace moe
