// Columns of a result as vectors along its rows: what the products with few columns work on.
#pragma once

#include "vec.h"

namespace moe {
namespace {

// Columns of c, LANES rows high, into registers and back.
template <int COLUMNS>
MOE_INLINE void get_columns(Vec (&sum)[COLUMNS], const float* c, int64_t ldc, int64_t count, bool wanted) {
  for (int n = 0; n < COLUMNS; ++n) {
    float lane[LANES] = {};
    for (int64_t i = 0; wanted && i < count; ++i) lane[i] = c[i * ldc + n];
    sum[n] = load(lane);
  }
}

template <int COLUMNS>
MOE_INLINE void put_columns(float* c, int64_t ldc, const Vec (&sum)[COLUMNS], int64_t count) {
  for (int n = 0; n < COLUMNS; ++n) {
    float lane[LANES];
    store(lane, sum[n]);
    for (int64_t i = 0; i < count; ++i) c[i * ldc + n] = lane[i];
  }
}

// Adds a run to the sum of the runs before it.
template <int COUNT>
MOE_INLINE void end_run(Vec (&sum)[COUNT], Vec (&run)[COUNT], bool first) {
  for (int i = 0; i < COUNT; ++i) {
    sum[i] = first ? run[i] : sum[i] + run[i];
    run[i] = Vec{};
  }
}

}  // namespace
}  // namespace moe
