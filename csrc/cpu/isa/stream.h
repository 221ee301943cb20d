// Results that leave the caches: transposed, rounded to bfloat16, and written a whole cache line at a time.
#pragma once

#include "pack_pairs.h"
#include "rows.h"

namespace moe {
namespace {

// scatter_transposed for rows of bfloat16 that nobody reads soon. Writing whole lines past the caches saves reading
// them first, and leaves the caches to the operands.
inline void stream_transposed(char* out, DType dtype, int64_t out_stride, const float* src, int64_t ld, int64_t count,
                              int64_t columns) {
  constexpr int64_t LINE = 2 * LANES;
  const bool whole = dtype == DType::bf16 && reinterpret_cast<uintptr_t>(out) % 64 == 0 && out_stride % LINE == 0;
  const int64_t streamed = whole ? columns / LINE * LINE : 0;
  for (int64_t i = 0; i < count; i += LANES) {
    const int64_t height = count - i < LANES ? count - i : LANES;
    for (int64_t j = 0; j < streamed; j += LINE) {
      Vec low[LANES], high[LANES];
#pragma GCC unroll 16
      for (int c = 0; c < LANES; ++c) {
        low[c] = load_first(src + (j + c) * ld + i, height);
        high[c] = load_first(src + (j + LANES + c) * ld + i, height);
      }
      transpose(low);
      transpose(high);
      for (int64_t r = 0; r < height; ++r) {
        const __m512bh line = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high[r]), reinterpret_cast<__m512>(low[r]));
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out + ((i + r) * out_stride + j) * 2),
                            reinterpret_cast<__m512i>(line));
      }
    }
  }
  if (streamed > 0) _mm_sfence();
  if (streamed < columns)
    scatter_transposed(out + streamed * item_size(dtype), dtype, out_stride, src + streamed * ld, ld, count,
                       columns - streamed);
}

}  // namespace
}  // namespace moe
