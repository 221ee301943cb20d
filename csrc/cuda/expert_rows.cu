// Launches of the sums over expert rows.
#include "cuda/by_half.h"
#include "cuda/expert_rows.cuh"
#include "cuda/expert_rows.h"

namespace moe::cuda {
namespace {

uint32_t count(int64_t n, int64_t in_one) { return static_cast<uint32_t>(ceil_div(n, in_one)); }

template <typename T>
void load_for() {
  load_kernel(slot_gradient_kernel<T>);
  load_kernel(column_sums_kernel<T>);
  load_kernel(token_sums_kernel<T>);
}

}  // namespace

void row_weight(const TensorView& slot_row, const TensorView& weights, const TensorView& out, int device,
                cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  launch("fused_experts_backward", row_weight_kernel, dim3(count(slot_row.numel(), ROW_THREADS)), dim3(ROW_THREADS), 0,
         stream, slot_row.as<const int32_t>(), weights.as<const float>(), slot_row.numel(), out.as<float>());
}

void slot_gradient(const TensorView& dots, const TensorView& slot_row, const TensorView& grad, const TensorView* bias,
                   const TensorView& offsets, const TensorView& out, int device, cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  by_half("fused_experts_backward", grad.dtype, [&](auto kind) {
    using T = decltype(kind);
    const SlotGradient<T> p{dots.as<const float>(),
                            dots.shape[1],
                            slot_row.as<const int32_t>(),
                            slot_row.numel(),
                            slot_row.shape[1],
                            bias ? bias->as<const T>() : nullptr,
                            grad.as<const T>(),
                            grad.strides[0],
                            grad.shape[1],
                            offsets.as<const int32_t>(),
                            static_cast<int32_t>(offsets.shape[0] - 1),
                            out.as<float>()};
    launch("fused_experts_backward", slot_gradient_kernel<T>, dim3(count(p.slots * 32, ROW_THREADS)), dim3(ROW_THREADS),
           0, stream, p);
  });
}

void column_sums(const TensorView& x, const TensorView& offsets, const TensorView* row_token, const TensorView* scale,
                 const TensorView& out, int device, cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  by_half("the gradient of a bias", x.dtype, [&](auto kind) {
    using T = decltype(kind);
    const ColumnSums<T> p{x.as<const T>(),
                          x.strides[0],
                          row_token ? row_token->as<const int32_t>() : nullptr,
                          scale ? scale->as<const float>() : nullptr,
                          offsets.as<const int32_t>(),
                          out.as<T>(),
                          out.shape[1]};
    const dim3 grid(static_cast<uint32_t>(out.shape[0]), count(p.columns, SUM_COLUMNS));
    launch("the gradient of a bias", column_sums_kernel<T>, grid, dim3(ROW_THREADS), 0, stream, p);
  });
}

void token_sums(const TensorView& rows, const TensorView& order, const TensorView& starts, const TensorView& out,
                int device, cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  by_half("grouped_mm_backward", rows.dtype, [&](auto kind) {
    using T = decltype(kind);
    const TokenSums<T> p{rows.as<const T>(),         rows.strides[0], order.as<const int64_t>(),
                         starts.as<const int64_t>(), out.as<T>(),     out.shape[1]};
    const dim3 grid(static_cast<uint32_t>(out.shape[0]), count(p.columns, ROW_THREADS * ROW_VECTOR));
    launch("grouped_mm_backward", token_sums_kernel<T>, grid, dim3(ROW_THREADS), 0, stream, p);
  });
}

void load_expert_rows() {
  load_kernel(row_weight_kernel);
  load_for<__half>();
  load_for<__nv_bfloat16>();
}

}  // namespace moe::cuda
