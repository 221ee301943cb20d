// Experts' matrices as operands of a product: dense ones as they lie, quantized ones with their factors.
#pragma once

#include <cstdint>

#include "common/view.h"
#include "isa/kernels.h"

namespace moe {

// A stack (E, O, H) in NF4 or int8. `data` is uint8 (E, O, H/2), or int8 (E, O, H); `scale` float32 (E·O·H/64), or (E,
// O). NF4's factors may be bytes, as bitsandbytes' double quantization has them: nested_code[scale] · nested_scale +
// offset.
struct QuantizedView {
  DType dtype;  // nf4 or i8
  TensorView data;
  TensorView scale;
  bool nested;
  TensorView nested_scale;
  TensorView nested_code;
  float offset;
  int64_t columns;  // H
};

// A weight (E, O, H), or (E, H, O) with `transposed`, in whichever of its strides it has.
struct Weight {
  const TensorView* view;
  bool transposed;
  const QuantizedView* quantized = nullptr;

  Weight(const TensorView& view, bool transposed) : view(&view), transposed(transposed) {}
  explicit Weight(const QuantizedView& quantized) : view(&quantized.data), transposed(false), quantized(&quantized) {}

  DType dtype() const { return quantized ? quantized->dtype : view->dtype; }
  int64_t experts() const { return view->shape[0]; }
  int64_t rows() const { return view->shape[transposed ? 2 : 1]; }                                      // O
  int64_t columns() const { return quantized ? quantized->columns : view->shape[transposed ? 1 : 2]; }  // H

  // Where row `row` of (O, H) begins, for a weight that lies so.
  const char* address(int64_t expert, int64_t row) const {
    if (transposed) return nullptr;
    return quantized ? quantized->data.row(expert) + bytes_of(quantized->dtype, row * quantized->columns)
                     : view->row(expert) + row * view->strides[1] * item_size(view->dtype);
  }

  // Rows [first, first + count) of the left operand (O, H) of y = W x; `scratch` holds forward_floats(count).
  Operand forward(const Kernels& kernels, int64_t expert, int64_t first, int64_t count, float* scratch) const;
  int64_t forward_floats(int64_t count) const { return nested() ? count * (columns() / NF4_BLOCK) : 0; }

  // Rows [first, first + count) of the left operand (H, O) of dx = Wᵀ dy; `scratch` holds backward_floats(count). For
  // NF4 both are multiples of its block.
  Operand backward(const Kernels& kernels, const Form& form, int64_t expert, int64_t first, int64_t count,
                   float* scratch) const;
  int64_t backward_floats(int64_t count) const { return quantized ? rows() * count + count + forward_floats(1) : 0; }

 private:
  bool nested() const { return quantized && quantized->nested; }
};

// Throws unless the weight is (E, O, H); -1 stands for any size.
void check_weight(const char* op, const char* name, const Weight& weight, int64_t experts, int64_t rows,
                  int64_t columns);

}  // namespace moe
