// The element types that kernels read and write, and vectors of them. Everything is computed in float32.
#pragma once

#include "common/view.h"
#include "cuda/kernel.h"

namespace moe::cuda {

template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Pack {
  T value[WIDTH];
};

MOE_HOST_DEVICE float to_float(float x) { return x; }
MOE_HOST_DEVICE float to_float(__half x) { return __half2float(x); }
MOE_HOST_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
MOE_HOST_DEVICE T from_float(float x);
template <>
MOE_HOST_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
MOE_HOST_DEVICE __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
MOE_HOST_DEVICE __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Calls visit.run<T>() with the element type of a tensor of floats.
template <typename Visit>
MOE_HOST_DEVICE void by_type(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::f16:
      return visit.template run<__half>();
    case DType::bf16:
      return visit.template run<__nv_bfloat16>();
    default:
      return visit.template run<float>();
  }
}

MOE_DEVICE float load_float(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f16:
      return to_float(static_cast<const __half*>(data)[i]);
    case DType::bf16:
      return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

}  // namespace moe::cuda
