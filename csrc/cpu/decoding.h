// One more token of each row of a batch: RMSNorm, and attention to the keys and values of the tokens before it.
//
// Letters: B rows, H query heads, N key heads (each serves H / N query heads in a row), D head size, C columns of the
// cache, P positions.
#pragma once

#include "common/view.h"

namespace moe {

// The multiplier of an RMSNorm (Zhang and Sennrich 2019); see Kernels::rms_norm.
struct NormWeight {
  const TensorView& weight;  // float32
  float eps;
  bool rounds_first;
};

// out (B, F) = norm(x), or base + norm(x); `out` may be x or base.
void rms_norm(const TensorView& x, const NormWeight& norm, const TensorView* base, const TensorView& out, int threads);

struct DecodeAttention {
  const TensorView& q;          // (B, H·D)
  const TensorView& k;          // (B, N·D)
  const TensorView& v;          // (B, N·D)
  const NormWeight* q_norm;     // of (D), or null
  const NormWeight* k_norm;     // of (D), or null
  const TensorView& cos;        // (P, D) float32
  const TensorView& sin;        // (P, D) float32, negative in the first half
  const TensorView& positions;  // (B) int64
  const TensorView& starts;     // (B) int64: the first column of each row that holds a token
  const TensorView& keys;       // (B, N, C, D), of q's type
  const TensorView& values;     // (B, N, C, D)
  int64_t column;               // where the new token goes
  int64_t window;               // columns that are seen, the new one included
  float scale;
};

// Writes column `column` of keys and values, and out (B, H·D). q and k are normalized and rotated in place.
void decode_attention(const DecodeAttention& arguments, const TensorView& out, int threads);

}  // namespace moe
