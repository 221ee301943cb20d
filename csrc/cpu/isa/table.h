// The table of this translation unit's instruction set.
#pragma once

#include "activation.h"
#include "product.h"
#include "rows.h"
#include "softmax.h"

namespace moe {
namespace {

constexpr Kernels make_table(const char* name) {
  return {name,
          LANES,
          TILE_ROWS,
          FEW_COLUMNS,
          PRODUCT_SCRATCH,
          product,
          gather,
          gather_transposed,
          scatter_transposed,
          load_row,
          store_row,
          add_scaled,
          dot,
          add_products,
          multiply,
          add_value,
          activate,
          activate_backward,
          softmax,
          sigmoid};
}

}  // namespace
}  // namespace moe
