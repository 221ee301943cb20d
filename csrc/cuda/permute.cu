// Row gather, weighted gather-sum and its gradient: memory-bound kernels that read and write each element once.
#include <stdexcept>

#include "cuda/kernel.h"
#include "cuda/launch.h"
#include "cuda/permute.cuh"
#include "cuda/permute.h"

namespace moe::cuda {
namespace {

constexpr int REDUCE_THREADS = 128;
constexpr int WARP = 32;

template <typename Unit>
__global__ void permute_kernel(PermuteArgs<Unit> a) {
  permute_thread(a, int64_t{blockIdx.x} * blockDim.y + threadIdx.y, int64_t{blockIdx.y} * blockDim.x + threadIdx.x);
}

template <typename T, int WIDTH>
__global__ void unpermute_kernel(UnpermuteArgs<T> a) {
  unpermute_thread<T, WIDTH>(a, int64_t{blockIdx.x} * blockDim.y + threadIdx.y,
                             int64_t{blockIdx.y} * blockDim.x + threadIdx.x);
}

// One block a slot. The order of the sum depends on the row length alone, so a token's gradient has the same bits in
// every batch.
template <typename T, int WIDTH>
__global__ void __launch_bounds__(REDUCE_THREADS) unpermute_backward_kernel(UnpermuteBackwardArgs<T> a) {
  MOE_SHARED(float, partial, [REDUCE_THREADS / WARP]);
  const int64_t slot = blockIdx.x;
  float dot = unpermute_backward_thread<T, WIDTH>(a, slot, threadIdx.x, REDUCE_THREADS);
  if (!a.weights) return;
  for (int step = WARP / 2; step > 0; step /= 2) dot += __shfl_down_sync(0xffffffffu, dot, step);
  if (threadIdx.x % WARP == 0) partial[threadIdx.x / WARP] = dot;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < REDUCE_THREADS / WARP; ++warp) dot += partial[warp];
    a.grad_weights[slot] = dot;
  }
}

template <typename T>
Rows<T> rows_of(const TensorView& view) {
  return {view.as<T>(), view.strides[0]};
}

template <typename Unit>
void launch_permute(const TensorView& x, const TensorView& offsets, const TensorView& row_token, const TensorView& out,
                    cudaStream_t stream) {
  const int64_t size = item_size(x.dtype), units = static_cast<int64_t>(sizeof(Unit));
  PermuteArgs<Unit> a{{x.as<const Unit>(), x.strides[0] * size / units},
                      {out.as<Unit>(), out.strides[0] * size / units},
                      row_token.as<const int32_t>(),
                      offsets.as<const int32_t>() + offsets.shape[0] - 1,
                      out.shape[0],
                      x.shape[1] * size / units};
  const RowLaunch l = row_launch(a.rows, a.columns);
  launch("permute", permute_kernel<Unit>, dim3(l.grid_rows, l.grid_columns), dim3(l.columns, l.rows), 0, stream, a);
}

template <typename T, int WIDTH>
void launch_unpermute(const TensorView& rows, const TensorView& slot_row, const TensorView* weights,
                      const TensorView& out, cudaStream_t stream) {
  UnpermuteArgs<T> a{rows_of<const T>(rows),
                     rows_of<T>(out),
                     slot_row.as<const int32_t>(),
                     weights ? weights->as<const float>() : nullptr,
                     out.shape[0],
                     slot_row.shape[1],
                     out.shape[1] / WIDTH};
  const RowLaunch l = row_launch(a.tokens, a.columns);
  launch("unpermute", unpermute_kernel<T, WIDTH>, dim3(l.grid_rows, l.grid_columns), dim3(l.columns, l.rows), 0, stream,
         a);
}

template <typename T, int WIDTH>
void launch_unpermute_backward(const TensorView& grad, const TensorView& rows, const TensorView& slot_row,
                               const TensorView* weights, const TensorView& grad_rows, const TensorView* grad_weights,
                               cudaStream_t stream) {
  UnpermuteBackwardArgs<T> a{rows_of<const T>(grad),
                             rows_of<const T>(rows),
                             rows_of<T>(grad_rows),
                             slot_row.as<const int32_t>(),
                             weights ? weights->as<const float>() : nullptr,
                             grad_weights ? grad_weights->as<float>() : nullptr,
                             slot_row.numel(),
                             slot_row.shape[1],
                             grad.shape[1] / WIDTH};
  launch("unpermute_backward", unpermute_backward_kernel<T, WIDTH>, static_cast<uint32_t>(a.slots), REDUCE_THREADS, 0,
         stream, a);
}

// Calls visit.run<T, WIDTH>() with the element type and either a full 16-byte vector or single elements.
template <typename Visit>
void by_element(DType dtype, bool wide, Visit&& visit) {
  switch (dtype) {
    case DType::f32:
      return wide ? visit.template run<float, 4>() : visit.template run<float, 1>();
    case DType::f16:
      return wide ? visit.template run<__half, 8>() : visit.template run<__half, 1>();
    case DType::bf16:
      return wide ? visit.template run<__nv_bfloat16, 8>() : visit.template run<__nv_bfloat16, 1>();
    default:
      throw std::invalid_argument("expected a float32, float16 or bfloat16 tensor");
  }
}

struct Unpermute {
  const TensorView &rows, &slot_row, *weights, &out;
  cudaStream_t stream;
  template <typename T, int WIDTH>
  void run() const {
    launch_unpermute<T, WIDTH>(rows, slot_row, weights, out, stream);
  }
};

struct UnpermuteBackward {
  const TensorView &grad, &rows, &slot_row, *weights, &grad_rows, *grad_weights;
  cudaStream_t stream;
  template <typename T, int WIDTH>
  void run() const {
    launch_unpermute_backward<T, WIDTH>(grad, rows, slot_row, weights, grad_rows, grad_weights, stream);
  }
};

struct Load {
  template <typename T, int WIDTH>
  void run() const {
    load_kernel(unpermute_kernel<T, WIDTH>);
    load_kernel(unpermute_backward_kernel<T, WIDTH>);
  }
};

}  // namespace

void permute(const TensorView& x, const TensorView& offsets, const TensorView& row_token, const TensorView& out,
             int device, cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  switch (vector_bytes(x.shape[1] * item_size(x.dtype), {&x, &out})) {
    case 16:
      return launch_permute<uint4>(x, offsets, row_token, out, stream);
    case 8:
      return launch_permute<uint2>(x, offsets, row_token, out, stream);
    case 4:
      return launch_permute<uint32_t>(x, offsets, row_token, out, stream);
    default:
      return launch_permute<uint16_t>(x, offsets, row_token, out, stream);
  }
}

void unpermute(const TensorView& rows, const TensorView& slot_row, const TensorView* weights, const TensorView& out,
               int device, cudaStream_t stream) {
  if (out.numel() == 0) return;
  DeviceGuard guard(device);
  const bool wide = vector_bytes(out.shape[1] * item_size(out.dtype), {&rows, &out}) == 16;
  by_element(out.dtype, wide, Unpermute{rows, slot_row, weights, out, stream});
}

void unpermute_backward(const TensorView& grad, const TensorView& rows, const TensorView& slot_row,
                        const TensorView* weights, const TensorView& grad_rows, const TensorView* grad_weights,
                        int device, cudaStream_t stream) {
  if (slot_row.numel() == 0) return;
  DeviceGuard guard(device);
  const bool wide = vector_bytes(grad.shape[1] * item_size(grad.dtype), {&grad, &rows, &grad_rows}) == 16;
  by_element(grad.dtype, wide, UnpermuteBackward{grad, rows, slot_row, weights, grad_rows, grad_weights, stream});
}

void load_permute() {
  load_kernel(permute_kernel<uint4>);
  load_kernel(permute_kernel<uint2>);
  load_kernel(permute_kernel<uint32_t>);
  load_kernel(permute_kernel<uint16_t>);
  for (DType dtype : {DType::f32, DType::f16, DType::bf16})
    for (bool wide : {false, true}) by_element(dtype, wide, Load{});
}

}  // namespace moe::cuda
