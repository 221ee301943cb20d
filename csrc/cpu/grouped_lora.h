// grouped_lora: the low-rank delta scaling[g] · (x · A[g]ᵀ) · B[g]ᵀ of each row's group g.
#pragma once

#include "common/view.h"

namespace moe {

struct LoraArguments {
  const TensorView& x;        // (N, H)
  const TensorView& a;        // (G, R, H), of any float type
  const TensorView& b;        // (G, O, R), of any float type
  const TensorView& groups;   // (N) int32 or int64; one outside [0, G) has no delta
  const TensorView& scaling;  // (G) float32
  const TensorView* ranks;    // (G) int32: the rows of A[g] and columns of B[g] that count; null for all R
};

// out (N, O) = delta, or base + delta; `out` may be `base`.
void grouped_lora(const LoraArguments& arguments, const TensorView* base, const TensorView& out, int threads);

struct LoraGradients {
  const TensorView* x;        // (N, H)
  const TensorView* a;        // (G, R, H)
  const TensorView* b;        // (G, O, R)
  const TensorView* scaling;  // (G) float32
};

void grouped_lora_backward(const TensorView& grad, const LoraArguments& arguments, const LoraGradients& gradients,
                           int threads);

}  // namespace moe
