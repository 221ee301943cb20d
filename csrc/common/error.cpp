#include "error.h"

namespace moe {
namespace {

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::u8:
      return "uint8";
    case DType::i8:
      return "int8";
    case DType::nf4:
      return "nf4";
    case DType::boolean:
      return "bool";
  }
  return "unknown";
}

std::string list(const int64_t* values, int count) {
  std::string text = "(";
  for (int i = 0; i < count; ++i) {
    if (i) text += ", ";
    text += values[i] < 0 ? std::string("any") : std::to_string(values[i]);
  }
  return text + ")";
}

[[noreturn]] void fail(const char* op, const char* name, const std::string& expected, const TensorView& got) {
  throw Error(std::string(op) + ": " + name + ": expected " + expected + ", got " + describe(got));
}

bool same_shape(const TensorView& view, std::initializer_list<int64_t> shape) {
  if (view.dims != static_cast<int>(shape.size())) return false;
  int i = 0;
  for (int64_t size : shape) {
    if (size >= 0 && view.shape[i] != size) return false;
    ++i;
  }
  return true;
}

std::string wanted(const char* kind, std::initializer_list<int64_t> shape) {
  return std::string(kind) + " " + list(shape.begin(), static_cast<int>(shape.size()));
}

}  // namespace

std::string describe(const TensorView& view) {
  return std::string(dtype_name(view.dtype)) + " " + list(view.shape, view.dims) + " with strides " +
         list(view.strides, view.dims);
}

void check_float(const char* op, const char* name, const TensorView& view, std::initializer_list<int64_t> shape) {
  if (!is_float(view.dtype) || !same_shape(view, shape) || (view.numel() > 0 && !view.contiguous()))
    fail(op, name, wanted("contiguous float32, bfloat16 or float16", shape), view);
}

void check_type(const char* op, const char* name, const TensorView& view, DType dtype,
                std::initializer_list<int64_t> shape) {
  if (view.dtype != dtype || !same_shape(view, shape) || (view.numel() > 0 && !view.contiguous()))
    fail(op, name, wanted((std::string("contiguous ") + dtype_name(dtype)).c_str(), shape), view);
}

void check_strided(const char* op, const char* name, const TensorView& view, std::initializer_list<int64_t> shape) {
  const bool unit = view.dims == 3 && (view.strides[1] == 1 || view.strides[2] == 1 || view.numel() == 0);
  if (!is_float(view.dtype) || !same_shape(view, shape) || !unit)
    fail(op, name, wanted("float32, bfloat16 or float16 with a unit stride in one of the last two dimensions,", shape),
         view);
}

}  // namespace moe
