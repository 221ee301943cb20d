// route, permute and unpermute.
#include "blocks.h"
#include "common/error.h"
#include "ops.h"
#include "tokens.h"

namespace moe {

void route_plan(const TensorView& indices, const TensorView& offsets, const TensorView& row_token,
                const TensorView& slot_row) {
  const char* op = "route";
  check_type(op, "indices", indices, indices.dtype == DType::i64 ? DType::i64 : DType::i32, {-1, -1});
  check_type(op, "offsets", offsets, DType::i32, {-1});
  check_type(op, "row_token", row_token, DType::i32, {indices.numel()});
  check_type(op, "slot_row", slot_row, DType::i32, {indices.shape[0], indices.shape[1]});
  route(indices, offsets.shape[0] - 1, offsets.as<int32_t>(), row_token.as<int32_t>(), slot_row.as<int32_t>());
}

int64_t lowest(const TensorView& integers) {
  const bool wide = integers.dtype == DType::i64;
  if ((!wide && integers.dtype != DType::i32) || !integers.contiguous() || integers.numel() == 0)
    throw Error("lowest: expected contiguous integers, at least one, got " + describe(integers));
  const auto least = [&](const auto* value) {
    auto found = value[0];
    for (int64_t i = 1; i < integers.numel(); ++i) found = value[i] < found ? value[i] : found;
    return static_cast<int64_t>(found);
  };
  return wide ? least(integers.as<const int64_t>()) : least(integers.as<const int32_t>());
}

void permute(const TensorView& x, const TensorView& offsets, const TensorView& row_token, const TensorView& out,
             int threads) {
  const char* op = "permute";
  const int64_t N = row_token.shape[0], columns = x.shape[1];
  check_float(op, "x", x, {-1, -1});
  check_type(op, "offsets", offsets, DType::i32, {-1});
  check_type(op, "row_token", row_token, DType::i32, {N});
  check_type(op, "out", out, x.dtype, {N, columns});
  check_offsets(op, offsets, N);
  const int64_t valid = offsets.as<const int32_t>()[offsets.shape[0] - 1], bytes = columns * item_size(x.dtype);
  check_row_token(op, row_token, valid, x.shape[0]);
  const int32_t* token = row_token.as<const int32_t>();
  const int64_t group = std::max<int64_t>(1, 65536 / std::max<int64_t>(bytes, 1));
  prefer_huge_pages(out.data, static_cast<size_t>(N * bytes));
  // Copying is quick beside the waking of a thread: with 48 bytes a nanosecond a second one begins where it gains
  // something (Xeon with AMX, 64 tokens of 6 KB each to 6 experts: 0.137 ms with one thread and with two).
  parallel_for((valid + group - 1) / group, threads_for(threads, static_cast<double>(valid) * bytes / 48.0),
               [&](int64_t task) {
                 for (int64_t n = task * group; n < std::min(valid, (task + 1) * group); ++n)
                   std::memcpy(out.row(n), x.row(token[n]), static_cast<size_t>(bytes));
               });
  zero_rows(out, valid, N, threads);
}

void unpermute(const TensorView& rows, const TensorView& slot_row, const TensorView* weights, const TensorView& out,
               int threads) {
  const char* op = "unpermute";
  const int64_t T = slot_row.shape[0], K = slot_row.shape[1], columns = rows.shape[1];
  check_float(op, "rows", rows, {-1, columns});
  check_type(op, "slot_row", slot_row, DType::i32, {T, K});
  check_slot_row(op, slot_row, rows.shape[0]);
  if (weights) check_type(op, "weights", *weights, DType::f32, {T, K});
  check_type(op, "out", out, rows.dtype, {T, columns});
  const TokenRows token_rows{slot_row.as<const int32_t>(), K, nullptr, nullptr};
  // By itself the sum needs more work for a second thread than as the last part of fused_experts, which has woken it.
  threads = threads_for(threads, static_cast<double>(T * K) * columns / 8.0);
  sum_rows(out.data, out.dtype, columns, 0, columns, T, rows.data, rows.dtype, columns, token_rows,
           weights ? weights->as<const float>() : nullptr, nullptr, nullptr, threads);
}

void unpermute_backward(const TensorView& grad, const TensorView& rows, const TensorView& slot_row,
                        const TensorView* weights, const TensorView& grad_rows, const TensorView* grad_weights,
                        int threads) {
  const char* op = "unpermute_backward";
  const Kernels& kern = kernels();
  const int64_t T = slot_row.shape[0], K = slot_row.shape[1], N = rows.shape[0], columns = rows.shape[1];
  check_float(op, "grad", grad, {T, columns});
  check_float(op, "rows", rows, {N, columns});
  check_type(op, "slot_row", slot_row, DType::i32, {T, K});
  check_slot_row(op, slot_row, N);
  check_type(op, "grad_rows", grad_rows, rows.dtype, {N, columns});
  if (weights) check_type(op, "weights", *weights, DType::f32, {T, K});
  if (grad_weights) check_type(op, "grad_weights", *grad_weights, DType::f32, {T, K});
  const int32_t* row_of_slot = slot_row.as<const int32_t>();
  std::vector<int32_t> slot_of_row(N, -1);
  for (int64_t slot = 0; slot < T * K; ++slot)
    if (row_of_slot[slot] >= 0) slot_of_row[row_of_slot[slot]] = static_cast<int32_t>(slot);
  const int used = threads_for(threads, static_cast<double>(N * columns) / 2.0);
  prefer_huge_pages(grad_rows.data, static_cast<size_t>(grad_rows.numel() * item_size(grad_rows.dtype)));
  parallel_for((N + 15) / 16, used, [&](int64_t group) {
    float* row = static_cast<float*>(thread_scratch(static_cast<size_t>(columns) * sizeof(float)));
    for (int64_t n = group * 16; n < std::min(N, (group + 1) * 16); ++n) {
      std::memset(row, 0, static_cast<size_t>(columns) * sizeof(float));
      const int64_t slot = slot_of_row[n];
      if (slot >= 0)
        kern.add_scaled(row, weights ? weights->as<const float>()[slot] : 1.0f, grad.row(slot / K), grad.dtype,
                        columns);
      kern.store(grad_rows.row(n), grad_rows.dtype, row, columns);
    }
  });
  if (!grad_weights) return;
  parallel_for(T, used, [&](int64_t t) {
    for (int64_t slot = t * K; slot < (t + 1) * K; ++slot) {
      const int64_t row = row_of_slot[slot];
      grad_weights->as<float>()[slot] =
          row < 0 ? 0.0f : kern.dot(grad.row(t), grad.dtype, rows.row(row), rows.dtype, columns);
    }
  });
}

}  // namespace moe
