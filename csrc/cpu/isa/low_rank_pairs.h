// `shrink` of bfloat16 by dot products of pairs: two terms an instruction. Denormal terms count as zero.
#pragma once

#include "low_rank.h"
#include "pairs.h"

namespace moe {
namespace {

struct PairTerms {
  static constexpr int64_t STEP = 2 * LANES, ITEM = 2;
  static MOE_INLINE Vec get(const char* p) { return load(reinterpret_cast<const float*>(p)); }
  static MOE_INLINE Vec get_first(const char* p, int64_t count) { return load_first_pairs(p, count); }
  static MOE_INLINE Vec multiply_add(Vec a, Vec b, Vec sum) { return dot_pair(a, b, sum); }
};
static_assert(SHRINK_DEPTH % PairTerms::STEP == 0, "only the end of a row is a part of a vector");

inline void shrink_pairs(float* h, int64_t ldh, const Rows& rows, int64_t count, const Operand& a, int64_t rank,
                         int64_t depth, Upcoming upcoming) {
  if (a.dtype == DType::bf16)
    shrink_as<PairTerms>(h, ldh, rows, count, a, rank, depth, upcoming);
  else
    shrink(h, ldh, rows, count, a, rank, depth, upcoming);
}

}  // namespace
}  // namespace moe
