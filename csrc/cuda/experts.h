// Entries of the products over expert rows. All work is queued on `stream` of `device`; nothing is synchronized.
//
// Operands are bfloat16 or float16 and all of one kind; rows lie at multiples of 16 bytes and have a multiple of 8
// columns. A weight is (E, O, H), and one of its last two strides is 1. Plans are int32, scales and sums float32.
#pragma once

#include <cuda_runtime_api.h>

#include "common/view.h"

namespace moe::cuda {

// x (N, H), or (T, H) with row_token -> out (N, O) = row_scale · (x wᵀ + bias); zeros for rows that no expert owns. The
// output is of the operands' kind or float32.
void grouped_mm(const TensorView& x, const TensorView& w, const TensorView& offsets, const TensorView* row_token,
                const TensorView* bias, const TensorView* row_scale, const TensorView& out, int device,
                cudaStream_t stream);

struct ActivationForm {
  int32_t activation;  // see activation.cuh
  float limit;
  bool gated;
  bool interleaved;
};

// x (T, H), gate_up (E, 2I, H) or (E, I, H) -> out (N, I), the activation, and, where wanted, pre (N, 2I) or (N, I)
void expert_up(const TensorView& x, const TensorView& gate_up, const TensorView& offsets, const TensorView& row_token,
               const TensorView* bias, const ActivationForm& form, const TensorView& out, const TensorView* pre,
               int device, cudaStream_t stream);

// grad (T, H), down as (E, I, H), pre and row_weight (N) -> weighted activation (N, I), grad_pre of pre's shape, and,
// where wanted, dots (N, expert_dots(I)), parts of Σ over I of the activation and its gradient
void expert_down_backward(const TensorView& grad, const TensorView& down, const TensorView& offsets,
                          const TensorView& row_token, const TensorView& pre, const TensorView& row_weight,
                          const ActivationForm& form, const TensorView& weighted, const TensorView& grad_pre,
                          const TensorView* dots, int device, cudaStream_t stream);
int64_t expert_dots(int64_t intermediate);

// a (N, O) and b (N, H), either with a gather -> out (E, O, H), the sum of a[n] ⊗ b[n] over each expert's rows
void grouped_outer(const TensorView& a, const TensorView* a_token, const TensorView& b, const TensorView* b_token,
                   const TensorView& offsets, const TensorView& out, int device, cudaStream_t stream);

// Load the kernels onto the current device.
void load_experts();

}  // namespace moe::cuda
