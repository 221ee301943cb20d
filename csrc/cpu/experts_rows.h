// The backward of fused_experts where the instruction set has products over rows as they lie (RowForm).
#pragma once

#include "experts_shape.h"
#include "row_products.h"

namespace moe {

// Inner features per partial sum of the routing weights' gradient: fixed, so that the order of that sum is.
constexpr int64_t PARTIAL = 64;

// What the pass back through the activation leaves, times the routing weight, in bfloat16 rows; and the parts of the
// routing weights' gradient, without it.
struct InnerRows {
  char* grad_pre;  // (N, wide)
  char* act;       // (N, inner)
  float* partial;  // (inner / PARTIAL, N): Σ dA' ∘ A
};

// `grad` are the rows' gradients (N, H), without the routing weight.
void activation_backward_by_rows(const Kernels& kernels, const ExpertShape& shape, const ExpertWeights& experts,
                                 const Rows& grad, const TensorView& pre, const Chunks& chunks, const float* row_weight,
                                 const InnerRows& inner, int threads);

// out (T, H) = Σ over a token's slots of grad_pre · gate_up; y is scratch (N, slice) of y_dtype.
void input_gradient_by_rows(const Kernels& kernels, const ExpertShape& shape, const Chunks& chunks,
                            const char* grad_pre, const int32_t* slot_row, char* y, DType y_dtype, int64_t slice,
                            const TensorView& out, int threads);

}  // namespace moe
