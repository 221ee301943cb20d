// The choice of a kernel by the element type of its 16-bit operands.
#pragma once

#include <stdexcept>
#include <string>

#include "common/view.h"
#include "cuda/kernel.h"

namespace moe::cuda {

// Calls visit(T{}) with the element type.
template <typename Visit>
void by_half(const char* op, DType dtype, Visit visit) {
  if (dtype == DType::bf16) return visit(__nv_bfloat16{});
  if (dtype == DType::f16) return visit(__half{});
  throw std::invalid_argument(std::string(op) + ": expected float16 or bfloat16");
}

}  // namespace moe::cuda
