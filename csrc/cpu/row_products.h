// The two products of a backward over rows as they lie (see RowForm), one task for each block of a weight.
#pragma once

#include "blocks.h"

namespace moe {

// An expert's rows in pieces of at most a few hundred: a block of the weight is unpacked once for each.
Chunks cut_into_row_chunks(const int32_t* offsets, int64_t experts);

// Tasks (chunk, block of columns) of a product whose columns number `columns`, and what each needs. Blocks begin at
// multiples of `quantum`, and have at most `largest` columns where that is not 0.
struct RowTasks {
  RowTasks(const RowForm& form, const Chunks& chunks, int64_t columns, int64_t quantum, int64_t largest, int threads);

  std::vector<Task> list;
  int64_t rows = 0;     // of the largest chunk
  int64_t columns = 0;  // of the largest block
};

// Scratch of one task: what the product needs, and some floats more.
struct RowScratch {
  RowScratch(const RowForm& form, const RowTasks& tasks, int64_t more_floats);

  char* inner;
  float* more;
};

// Σ_k a(first row of the chunk + n, k) · w(k, first + j) for the rows n and columns j of a task: the sums stay in
// `inner`, for RowForm::results with the operand that is returned. `weight_scratch` holds w.backward_floats(columns of
// the task).
Operand row_product(const Kernels& kernels, const Chunks& chunks, const Task& task, const Rows& a, int64_t depth,
                    const Weight& w, int64_t first, float* weight_scratch, char* inner);

// y (N, count) = a · w over all rows, for the columns [first, first + count) of w; y is float32 or bfloat16.
void product_of_rows(const Kernels& kernels, const Chunks& chunks, const Rows& a, int64_t depth, const Weight& w,
                     int64_t first, int64_t count, char* y, DType dtype, int threads);

// Columns of y at a time: fewer than all only where they would take hundreds of megabytes.
int64_t row_slice(int64_t rows, int64_t columns);

// out[e](m, c) (+)= Σ_n a(n, m) · b(n, c) over the rows n of expert e, with one rounding; out is (E, features, columns)
// in bfloat16. Without `add` an expert without rows gets zeros. `stream` as in RowForm.
void outer_product(const RowForm& form, const int32_t* offsets, const Rows& a, const Rows& b, const TensorView& out,
                   bool add, bool stream, int threads);

}  // namespace moe
