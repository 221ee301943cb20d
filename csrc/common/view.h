// A tensor as the native core sees it: an address, a shape, strides and a dtype code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moe {

// The codes are shared with moe_kernels/native.py, but for nf4, which no tensor has: two values in a byte, the first in
// the high half.
enum class DType : int32_t { f32 = 0, bf16 = 1, f16 = 2, i32 = 3, i64 = 4, boolean = 5, u8 = 6, i8 = 7, nf4 = 8 };

inline int64_t item_size(DType dtype) {
  switch (dtype) {
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::bf16:
    case DType::f16:
      return 2;
    case DType::boolean:
    case DType::u8:
    case DType::i8:
      return 1;
    case DType::nf4:
      break;  // see bytes_of
  }
  return 0;
}

inline int64_t bytes_of(DType dtype, int64_t count) {
  return dtype == DType::nf4 ? count / 2 : count * item_size(dtype);
}

inline bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }

struct TensorView {
  static constexpr int MAX_DIMS = 4;

  char* data = nullptr;
  int64_t shape[MAX_DIMS] = {0, 0, 0, 0};
  int64_t strides[MAX_DIMS] = {0, 0, 0, 0};  // in elements
  int32_t dims = 0;
  DType dtype = DType::f32;

  int64_t numel() const {
    int64_t count = 1;
    for (int i = 0; i < dims; ++i) count *= shape[i];
    return count;
  }

  bool contiguous() const {
    int64_t expected = 1;
    for (int i = dims - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }

  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data);
  }

  // Address of row i of a tensor whose first dimension is the row.
  char* row(int64_t i) const { return data + i * strides[0] * item_size(dtype); }
};

}  // namespace moe
