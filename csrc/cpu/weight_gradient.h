// Gradients of weights: products over an expert's rows.
#pragma once

#include "blocks.h"

namespace moe {

// out[e](m, h) = Σ_n left[m][n] · rows(n, h) over the rows n of expert e; zero for an expert without rows. `left` is a
// chunk-wise tensor of `features` rows of form.left. m runs along out's rows, or along its columns with `across`.
// With `add` it is added to what out holds, with one rounding.
void weight_gradient(const Kernels& kernels, const Form& form, const Chunks& chunks, const char* left, int64_t features,
                     const Rows& rows, int64_t columns, const TensorView& out, bool across, bool add, int threads);

// out[e][m] = Σ_n left[m][n] · factor[n], factor being one where it is null.
void bias_gradient(const Kernels& kernels, const Form& form, const Chunks& chunks, const char* left, int64_t features,
                   const float* factor, const TensorView& out, int threads);

// out[e][h] = Σ_n factor[n] · rows(n, h).
void bias_gradient_of_rows(const Kernels& kernels, const int32_t* offsets, const Rows& rows, const float* factor,
                           const TensorView& out, int threads);

}  // namespace moe
