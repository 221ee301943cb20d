// The element types that kernels read and write, and vectors of them. Everything is computed in float32.
#pragma once

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

}  // namespace moe::cuda
