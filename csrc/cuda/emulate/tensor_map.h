// What the driver asks of a tensor map, on a CPU. In the emulation a TensorMap holds the BoxedTensor itself.
#pragma once

#include <stdexcept>

#include "cuda/tensor_map.h"

namespace moe::emulate {

inline void check_tensor(const cuda::BoxedTensor& tensor) {
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16) throw std::runtime_error("TMA: the address is no multiple of 16");
  for (int64_t size : tensor.sizes)
    if (size < 1 || size > int64_t{1} << 32) throw std::runtime_error("TMA: no such size");
  for (int64_t stride : tensor.strides)
    if (stride < 1 || stride * 2 % 16 || stride * 2 >= int64_t{1} << 40)
      throw std::runtime_error("TMA: no such stride");
  if (tensor.rows < 1 || tensor.rows > 256) throw std::runtime_error("TMA: no such box");
}

}  // namespace moe::emulate
