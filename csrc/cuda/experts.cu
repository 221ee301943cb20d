// From tensor views to the products over expert rows.
#include <cstdlib>
#include <cstring>

#include "cuda/by_half.h"
#include "cuda/experts.h"
#include "cuda/grouped_launch.h"
#include "cuda/grouped_wgmma_launch.h"

namespace moe::cuda {
namespace {

template <typename T>
T* pointer(const TensorView* view) {
  return view ? view->as<T>() : nullptr;
}

// Everything but the output. `w` is (E, O, H); of a pair of gate and up with the gate first, `up_from` is up's column.
template <typename T>
RowsProduct<T> product_of(const TensorView& x, const TensorView& w, const TensorView& offsets,
                          const TensorView* row_token, int64_t rows, int64_t up_from) {
  RowsProduct<T> p{};
  p.groups = {offsets.as<const int32_t>(), static_cast<int32_t>(w.shape[0]), rows};
  p.x = x.as<const T>();
  p.x_stride = x.strides[0];
  p.row_token = pointer<const int32_t>(row_token);
  p.w = w.as<const T>();
  p.w_expert_stride = w.strides[0];
  p.w_stride = w.strides[2] == 1 ? w.strides[1] : w.strides[2];
  p.inner = w.shape[2];
  p.width = w.shape[1];
  p.up_from = up_from;
  return p;
}

template <typename T>
void launch_rows(const char* op, RowsProduct<T>& product, const TensorView& w, cudaStream_t stream) {
  launch_rows_product(op, product, w.strides[2] == 1, stream);
}

template <typename T>
RowsOperand<T> operand_of(const TensorView& rows, const TensorView* row_token) {
  return {rows.as<const T>(), rows.strides[0], pointer<const int32_t>(row_token), rows.shape[1]};
}

}  // namespace

bool has_wgmma() {
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
  // The one architecture whose image has these instructions.
  return major == 9 && minor == 0;
}

bool wgmma_serves(int64_t w_expert_stride) {
  const char* wanted = std::getenv("MOE_KERNELS_CUDA_PRODUCTS");
  return !(wanted && std::strcmp(wanted, "mma") == 0) && w_expert_stride > 0 && has_wgmma();
}

void grouped_mm(const TensorView& x, const TensorView& w, const TensorView& offsets, const TensorView* row_token,
                const TensorView* bias, const TensorView* row_scale, const TensorView& out, int device,
                cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  by_half("grouped_mm", x.dtype, [&](auto kind) {
    using T = decltype(kind);
    auto p = product_of<T>(x, w, offsets, row_token, out.shape[0], 0);
    p.output.form = Form::linear;
    p.output.columns = out.shape[1];
    if (out.dtype == DType::f32)
      p.output.unrounded = out.as<float>();
    else
      p.output.out = out.as<T>();
    p.output.bias = pointer<const T>(bias);
    p.output.scale = pointer<const float>(row_scale);
    launch_rows("grouped_mm", p, w, stream);
  });
}

void expert_up(const TensorView& x, const TensorView& gate_up, const TensorView& offsets, const TensorView& row_token,
               const TensorView* bias, const ActivationForm& form, const TensorView& out, const TensorView* pre,
               int device, cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  by_half("fused_experts", x.dtype, [&](auto kind) {
    using T = decltype(kind);
    const int64_t up_from = form.gated && !form.interleaved ? out.shape[1] : 0;
    auto p = product_of<T>(x, gate_up, offsets, &row_token, out.shape[0], up_from);
    p.output.form = Form::activate;
    p.output.activation = static_cast<Activation>(form.activation);
    p.output.limit = form.limit;
    p.output.is_gated = form.gated;
    p.output.interleaved = form.interleaved;
    p.output.columns = out.shape[1];
    p.output.out = out.as<T>();
    p.output.pre = pointer<T>(pre);
    p.output.bias = pointer<const T>(bias);
    launch_rows("fused_experts", p, gate_up, stream);
  });
}

int64_t expert_dots(int64_t intermediate) { return ceil_div(intermediate, DOT_COLUMNS); }

void expert_down_backward(const TensorView& grad, const TensorView& down, const TensorView& offsets,
                          const TensorView& row_token, const TensorView& pre, const TensorView& row_weight,
                          const ActivationForm& form, const TensorView& weighted, const TensorView& grad_pre,
                          const TensorView* dots, int device, cudaStream_t stream) {
  if (weighted.numel() == 0) return;
  DeviceGuard guard(device);
  by_half("fused_experts_backward", grad.dtype, [&](auto kind) {
    using T = decltype(kind);
    auto p = product_of<T>(grad, down, offsets, &row_token, weighted.shape[0], 0);
    p.output.form = Form::activate_backward;
    p.output.activation = static_cast<Activation>(form.activation);
    p.output.limit = form.limit;
    p.output.is_gated = form.gated;
    p.output.interleaved = form.interleaved;
    p.output.columns = weighted.shape[1];
    p.output.out = weighted.as<T>();
    p.output.pre = pre.as<T>();
    p.output.grad_pre = grad_pre.as<T>();
    p.output.scale = row_weight.as<const float>();
    p.output.dot = pointer<float>(dots);
    p.output.dots = dots ? dots->shape[1] : 0;
    launch_rows("fused_experts_backward", p, down, stream);
  });
}

void grouped_outer(const TensorView& a, const TensorView* a_token, const TensorView& b, const TensorView* b_token,
                   const TensorView& offsets, const TensorView& out, int device, cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  by_half("the gradient of expert weights", a.dtype, [&](auto kind) {
    using T = decltype(kind);
    OuterProduct<T> p{};
    p.offsets = offsets.as<const int32_t>();
    p.a = operand_of<T>(a, a_token);
    p.b = operand_of<T>(b, b_token);
    p.out = out.as<T>();
    launch_outer_product("the gradient of expert weights", p, static_cast<int32_t>(out.shape[0]), stream);
  });
}

void load_experts() {
  load_products<__half>();
  load_products<__nv_bfloat16>();
}

}  // namespace moe::cuda
