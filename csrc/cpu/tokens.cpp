#include "tokens.h"

#include <algorithm>
#include <cstring>

#include "blocks.h"

namespace moe {

RowsByToken::RowsByToken(const int32_t* row_token, int64_t valid_rows, int64_t tokens)
    : begin(tokens + 1, 0), order(valid_rows) {
  for (int64_t n = 0; n < valid_rows; ++n) ++begin[row_token[n] + 1];
  for (int64_t t = 0; t < tokens; ++t) begin[t + 1] += begin[t];
  std::vector<int32_t> next(begin.begin(), begin.end() - 1);
  for (int64_t n = 0; n < valid_rows; ++n) order[next[row_token[n]]++] = static_cast<int32_t>(n);
}

void sum_rows(char* out, DType dtype, int64_t out_stride, int64_t column, int64_t count, int64_t tokens,
              const char* rows, DType rows_dtype, int64_t rows_stride, const TokenRows& token_rows,
              const float* weights, const float* row_factor, const TensorView* base, int threads) {
  const Kernels& kern = kernels();
  const int64_t rows_item = item_size(rows_dtype), out_item = item_size(dtype);
  const int64_t per_token = std::max<int64_t>(token_rows.slots, 1) * count;
  const int64_t group = std::max<int64_t>(1, 16384 / std::max<int64_t>(per_token, 1));
  const int used = threads_for(threads, static_cast<double>(tokens) * per_token / 4.0);
  parallel_for((tokens + group - 1) / group, used, [&](int64_t task) {
    float* sum = static_cast<float*>(thread_scratch(static_cast<size_t>(count) * sizeof(float)));
    for (int64_t t = task * group; t < std::min(tokens, (task + 1) * group); ++t) {
      std::memset(sum, 0, static_cast<size_t>(count) * sizeof(float));
      const bool listed = token_rows.begin != nullptr;
      const int64_t first = listed ? token_rows.begin[t] : t * token_rows.slots;
      const int64_t end = listed ? token_rows.begin[t + 1] : first + token_rows.slots;
      for (int64_t slot = first; slot < end; ++slot) {
        const int64_t row = listed ? token_rows.order[slot] : token_rows.slot_row[slot];
        if (row < 0) continue;
        const float weight = weights ? weights[slot] : 1.0f;
        kern.add_scaled(sum, row_factor ? weight * row_factor[row] : weight, rows + row * rows_stride * rows_item,
                        rows_dtype, count);
      }
      if (base) kern.add_scaled(sum, 1.0f, base->row(t) + column * item_size(base->dtype), base->dtype, count);
      kern.store(out + (t * out_stride + column) * out_item, dtype, sum, count);
    }
  });
}

void zero_rows(const TensorView& tensor, int64_t first, int64_t end, int threads) {
  const int64_t bytes = tensor.strides[0] * item_size(tensor.dtype);
  const int64_t group = std::max<int64_t>(1, (int64_t{1} << 20) / std::max<int64_t>(bytes, 1));
  const int used = threads_for(threads, static_cast<double>(end - first) * bytes / 10.0);
  parallel_for((end - first + group - 1) / group, used, [&](int64_t task) {
    const int64_t from = first + task * group;
    std::memset(tensor.row(from), 0, static_cast<size_t>(std::min(group, end - from) * bytes));
  });
}

}  // namespace moe
