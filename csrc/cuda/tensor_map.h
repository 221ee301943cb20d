// Descriptions of tensors for the copy engine (TMA).
#pragma once

#include <cstdint>

#include "common/view.h"

namespace moe::cuda {

// A CUtensorMap: 128 bytes that the driver fills.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// A tensor of 16-bit elements with three dimensions, the first of stride 1, and the box that one copy takes, 64
// elements wide: 128 bytes, the span of the swizzle. Elements outside of the tensor are read as zeros.
struct BoxedTensor {
  const void* data;
  DType dtype;
  int64_t sizes[3];
  int64_t strides[2];  // of the second and third dimension, in elements, multiples of 8
  int32_t rows;        // of the box, along the second dimension
};
constexpr int32_t BOX_WIDTH = 64;

// Throws std::runtime_error with the op's name where the driver refuses.
TensorMap tensor_map(const char* op, const BoxedTensor& tensor);

}  // namespace moe::cuda
