// Sums and maxima over a warp. All lanes get the same bits: a butterfly adds the same two numbers on both sides.
#pragma once

#include <cstdint>

#include "cuda/kernel.h"

namespace moe::cuda {

constexpr int WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// An unsigned integer in the order of the floats: -inf is 0x007fffff, both zeros are one, NaN is above +inf.
MOE_DEVICE uint32_t ordered(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
MOE_DEVICE float from_ordered(uint32_t key) { return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key); }

// No lane may have a NaN.
MOE_DEVICE float warp_max(float x) { return from_ordered(__reduce_max_sync(ALL_LANES, ordered(x))); }

MOE_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

// Lanes before this one.
MOE_DEVICE uint32_t lanes_before(int lane) { return (1u << lane) - 1; }

}  // namespace moe::cuda
