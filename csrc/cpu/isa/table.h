// The table of this translation unit's instruction set.
#pragma once

#include "activation.h"
#include "attention.h"
#include "floats.h"
#include "low_rank.h"
#include "packing.h"
#include "quantized.h"
#include "rows.h"
#include "softmax.h"

namespace moe {
namespace {

constexpr Form FLOATS = {DType::f32,
                         FloatWords::UNIT,
                         FloatWords::DEPTH,
                         1,
                         1,
                         TILE_ROWS,
                         FEW_COLUMNS,
                         0,
                         PANEL_SCRATCH<FloatWords>,
                         product_floats,
                         product_floats,
                         pack_columns_floats,
                         pack_rows_floats,
                         pack_block_floats<FEW_COLUMNS>};

// The forms that an instruction set has of its own; the others are computed in float32.
struct OwnForms {
  const Form* pairs = &FLOATS;
  const Form* nf4 = &FLOAT_NF4;
  const Form* int8 = &FLOAT_INT8;
  const Form* int8_int8 = &FLOAT_INT8_INT8;
  const RowForm* rows = nullptr;
  decltype(Kernels::shrink) shrink = moe::shrink;
  decltype(Kernels::pack_expand) pack_expand = moe::pack_expand;
  decltype(Kernels::expand) expand = moe::expand;
  decltype(Kernels::stream_transposed) stream_transposed = scatter_transposed;
};

constexpr Kernels make_table(const char* name, const OwnForms& own = {}) {
  return {name,
          LANES,
          &FLOATS,
          own.pairs,
          own.nf4,
          &FLOAT_NF4,
          own.int8,
          &FLOAT_INT8,
          own.int8_int8,
          own.rows,
          gather_transposed,
          scatter_transposed,
          own.stream_transposed,
          load_row,
          dequantize,
          nested_scales,
          store_row,
          add_scaled,
          dot,
          add_products,
          multiply,
          add_value,
          activate,
          activate_backward,
          softmax,
          sigmoid,
          own.shrink,
          EXPAND_COLUMNS,
          own.pack_expand,
          own.expand,
          rms_norm,
          turn,
          attend,
          unpack_bf16};
}

}  // namespace
}  // namespace moe
