// The table of this translation unit's instruction set.
#pragma once

#include "activation.h"
#include "floats.h"
#include "rows.h"
#include "softmax.h"

namespace moe {
namespace {

constexpr Form FLOATS = {DType::f32,
                         FloatWords::UNIT,
                         FloatWords::DEPTH,
                         TILE_ROWS,
                         FEW_COLUMNS,
                         PANEL_SCRATCH<FloatWords>,
                         product_floats,
                         pack_columns_floats,
                         pack_rows_floats,
                         pack_block_floats};

constexpr Kernels make_table(const char* name, const Form* pairs = nullptr) {
  return {name,         LANES,    FLOATS,    pairs,     gather_transposed, scatter_transposed,
          load_row,     store_row, add_scaled, dot,      add_products,      multiply,
          add_value,    activate, activate_backward, softmax, sigmoid};
}

}  // namespace
}  // namespace moe
