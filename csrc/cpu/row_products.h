// The two products of a backward over rows as they lie (see RowForm), one task for each block of a weight.
#pragma once

#include "blocks.h"

namespace moe {

// Tasks (chunk, block of columns) of a product whose columns number `columns`, and what each needs. Blocks begin at
// multiples of `quantum`.
struct RowTasks {
  RowTasks(const Chunks& chunks, int64_t columns, int64_t quantum, int64_t largest, int threads);

  std::vector<Task> list;
  int64_t rows = 0;     // of the largest chunk
  int64_t columns = 0;  // of the largest block
};

// Scratch of one task: a block of results [row][columns], what the product needs, and some floats more.
struct RowScratch {
  RowScratch(const RowForm& form, const RowTasks& tasks, int64_t more_floats);

  float* result;
  char* inner;
  float* more;
};

// out[n * out_stride + j] = Σ_k a(first row of the chunk + n, k) · w(k, first + j) for the rows and columns of a task.
// `weight_scratch` holds w.backward_floats(columns of the task).
void row_product(const Kernels& kernels, const Chunks& chunks, const Task& task, const Rows& a, int64_t depth,
                 const Weight& w, int64_t first, float* out, int64_t out_stride, float* weight_scratch, char* inner);

// y (N, count) = a · w over all rows, for the columns [first, first + count) of w.
void product_of_rows(const Kernels& kernels, const Chunks& chunks, const Rows& a, int64_t depth, const Weight& w,
                     int64_t first, int64_t count, float* y, int threads);

// Columns of y at a time: fewer than all only where they would take hundreds of megabytes.
int64_t row_slice(int64_t rows, int64_t columns);

// out[e](m, c) (+)= Σ_n a(n, m) · b(n, c) over the rows n of expert e, with one rounding; out is (E, features, columns)
// in bfloat16. Without `add` an expert without rows gets zeros.
void outer_product(const RowForm& form, const int32_t* offsets, const Rows& a, const Rows& b, const TensorView& out,
                   bool add, int threads);

}  // namespace moe
