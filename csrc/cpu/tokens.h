// From rows back to tokens, and row-wise moves.
#pragma once

#include <vector>

#include "common/view.h"
#include "plan.h"

namespace moe {

// Which rows make up a token, in the order of summation.
struct TokenRows {
  const int32_t* slot_row = nullptr;  // (T, K); -1 adds nothing
  int64_t slots = 0;
  const int32_t* begin = nullptr;  // (T+1), in the place of slot_row: the rows order[begin[t]] to order[begin[t+1]]
  const int32_t* order = nullptr;
};

// The rows of each token in ascending order.
struct RowsByToken {
  RowsByToken(const int32_t* row_token, int64_t valid_rows, int64_t tokens);
  TokenRows rows() const { return {nullptr, 0, begin.data(), order.data()}; }

  std::vector<int32_t> begin, order;
};

// out[t, column + j] = Σ weight · rows[r, j] (+ base[t, column + j]) in float32, for j < count. `weights` is (T, K) or
// null for ones, `row_factor` a factor of each row or null.
void sum_rows(char* out, DType dtype, int64_t out_stride, int64_t column, int64_t count, int64_t tokens,
              const char* rows, DType rows_dtype, int64_t rows_stride, const TokenRows& token_rows,
              const float* weights, const float* row_factor, const TensorView* base, int threads);

// Entries of a tensor's rows [first, end), set to zero.
void zero_rows(const TensorView& tensor, int64_t first, int64_t end, int threads);

}  // namespace moe
