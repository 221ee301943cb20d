#include "weight.h"

#include <string>

#include "common/error.h"

namespace moe {

Operand Weight::forward(const Kernels& kernels, int64_t expert, int64_t first, int64_t count, float* scratch) const {
  if (!quantized) {
    const Operand whole{view->row(expert),
                        view->dtype,
                        view->strides[transposed ? 2 : 1],
                        view->strides[transposed ? 1 : 2],
                        nullptr,
                        0};
    return whole.at(first, 0);
  }
  const QuantizedView& q = *quantized;
  const int64_t row = expert * rows() + first, factors = q.dtype == DType::nf4 ? q.columns / NF4_BLOCK : 1;
  Operand part{q.data.row(expert) + bytes_of(q.dtype, first * q.columns), q.dtype, q.columns, 1, nullptr, factors};
  if (q.nested) {
    kernels.nested_scales(scratch, q.scale.as<const uint8_t>() + row * factors, row * factors, count * factors,
                          q.nested_scale.as<const float>(), q.nested_code.as<const float>(), q.offset);
    part.scale = scratch;
  } else {
    part.scale = q.scale.as<const float>() + row * factors;
  }
  return part;
}

Operand Weight::backward(const Kernels& kernels, const Form& form, int64_t expert, int64_t first, int64_t count,
                         float* scratch) const {
  if (!quantized) {
    const Operand whole{view->row(expert),
                        view->dtype,
                        view->strides[transposed ? 1 : 2],
                        view->strides[transposed ? 2 : 1],
                        nullptr,
                        0};
    return whole.at(first, 0);
  }
  float* factors = scratch + rows() * count;
  float* values = factors + forward_floats(1);
  char* panel = reinterpret_cast<char*>(scratch);
  for (int64_t o = 0; o < rows(); ++o) {
    const Operand row = forward(kernels, expert, o, 1, factors);
    kernels.dequantize(values, row, 0, first, count);
    kernels.store(panel + o * count * item_size(form.left), form.left, values, count);
  }
  return {panel, form.left, 1, count, nullptr, 0};
}

void check_weight(const char* op, const char* name, const Weight& weight, int64_t experts, int64_t rows,
                  int64_t columns) {
  if (!weight.quantized) {
    check_strided(op, name, *weight.view,
                  {experts, weight.transposed ? columns : rows, weight.transposed ? rows : columns});
    return;
  }
  const QuantizedView& q = *weight.quantized;
  const int64_t E = weight.experts(), O = weight.rows();
  const bool nf4 = q.dtype == DType::nf4;
  if ((experts >= 0 && E != experts) || (rows >= 0 && O != rows) || (columns >= 0 && q.columns != columns))
    throw Error(std::string(op) + ": " + name + ": expected (" + std::to_string(experts) + ", " + std::to_string(rows) +
                ", " + std::to_string(columns) + "), got (" + std::to_string(E) + ", " + std::to_string(O) + ", " +
                std::to_string(q.columns) + ")");
  if (nf4 && q.columns % NF4_BLOCK != 0) throw Error(std::string(op) + ": " + name + ": expected H % 64 == 0");
  // Experts may lie apart, as those in the slots of a cache do; one expert's matrix has no gaps.
  TensorView one = q.data;
  if (E > 0) one.shape[0] = 1;
  check_type(op, name, one, nf4 ? DType::u8 : DType::i8, {E > 0 ? 1 : 0, O, nf4 ? q.columns / 2 : q.columns});
  const int64_t factors = nf4 ? E * O * (q.columns / NF4_BLOCK) : E * O;
  if (q.scale.numel() != factors || !q.scale.contiguous() || q.scale.dtype != (q.nested ? DType::u8 : DType::f32))
    throw Error(std::string(op) + ": " + name + ": expected " + std::to_string(factors) + " factors, got " +
                describe(q.scale));
  if (!q.nested) return;
  check_type(op, name, q.nested_scale, DType::f32, {(factors + 255) / 256});
  check_type(op, name, q.nested_code, DType::f32, {256});
}

}  // namespace moe
