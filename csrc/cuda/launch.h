// Launch geometry and vector width of the kernels that walk rows. Plain C++, so that it is tested without a GPU.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/view.h"

namespace moe::cuda {

// A block is `columns` x `rows` threads; thread (i, j) owns one vector of one row.
struct RowLaunch {
  uint32_t columns = 1;
  uint32_t rows = 1;
  uint32_t grid_rows = 0;
  uint32_t grid_columns = 0;
};

// Largest power of two of at most 16 bytes that divides the row length, every address and every row stride.
inline int vector_bytes(int64_t row_bytes, std::initializer_list<const TensorView*> views) {
  uint64_t bits = 16 | static_cast<uint64_t>(row_bytes);
  for (const TensorView* view : views) {
    bits |= static_cast<uint64_t>(reinterpret_cast<uintptr_t>(view->data));
    // The stride of a single row is never used.
    if (view->shape[0] > 1) bits |= static_cast<uint64_t>(view->strides[0] * item_size(view->dtype));
  }
  return static_cast<int>(bits & (~bits + 1));
}

// The block's shape follows from the row length alone: a row is computed alike whatever its neighbours are.
inline RowLaunch row_launch(int64_t rows, int64_t vectors, int threads = 256) {
  RowLaunch launch;
  while (launch.columns < vectors && launch.columns < static_cast<uint32_t>(threads)) launch.columns *= 2;
  launch.rows = static_cast<uint32_t>(threads) / launch.columns;
  launch.grid_rows = static_cast<uint32_t>((rows + launch.rows - 1) / launch.rows);
  launch.grid_columns = static_cast<uint32_t>((vectors + launch.columns - 1) / launch.columns);
  return launch;
}

}  // namespace moe::cuda
