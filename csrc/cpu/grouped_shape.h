// Sizes and checks that forward and backward of grouped_mm share.
#pragma once

#include <string>

#include "blocks.h"
#include "common/error.h"
#include "ops.h"

namespace moe {

struct GroupedShape {
  GroupedShape(const char* op, const GroupedArguments& a)
      : w(a.w),
        experts(a.w.experts()),
        inputs(a.x.shape[1]),
        outputs(w.rows()),
        rows(a.row_token ? a.row_token->shape[0] : a.x.shape[0]),
        tokens(a.x.shape[0]) {
    check_float(op, "x", a.x, {-1, -1});
    check_weight(op, "w", w, experts, outputs, inputs);
    check_type(op, "offsets", a.offsets, DType::i32, {experts + 1});
    check_offsets(op, a.offsets, rows);
    offsets = a.offsets.as<const int32_t>();
    valid_rows = offsets[experts];
    if (a.row_token) {
      check_type(op, "row_token", *a.row_token, DType::i32, {rows});
      check_row_token(op, *a.row_token, valid_rows, tokens);
    }
    if (a.bias) check_float(op, "bias", *a.bias, {experts, outputs});
    if (a.row_scale) check_type(op, "row_scale", *a.row_scale, DType::f32, {rows});
    if (a.slot_row) {
      check_type(op, "slot_row", *a.slot_row, DType::i32, {-1, -1});
      check_slot_row(op, *a.slot_row, rows);
    }
  }

  double time() const {
    const double size = static_cast<double>(inputs) * static_cast<double>(outputs);
    return product_time(size * static_cast<double>(std::min<int64_t>(experts, valid_rows)),
                        size * static_cast<double>(valid_rows));
  }

  // Rows of y (N, count) that no expert writes, and that a slot may still read.
  void zero_unowned(float* y, int64_t count) const {
    std::memset(y + valid_rows * count, 0, static_cast<size_t>((rows - valid_rows) * count) * sizeof(float));
  }

  const Weight& w;
  int64_t experts, inputs, outputs, rows, tokens;  // E, H, O, N, rows of x
  const int32_t* offsets = nullptr;
  int64_t valid_rows = 0;
};

}  // namespace moe
