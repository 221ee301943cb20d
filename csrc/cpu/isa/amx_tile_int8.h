// AMX products of signed by signed bytes; amx_tile.h has signed by unsigned.
#pragma once

#include "amx_tile.h"

namespace moe {
namespace {

#if defined(MOE_EMULATE_AMX)

template <int C, int A, int B>
inline void tile_dot_signed() {
  emulated_dot_bytes<int8_t, C, A, B>();
}

#else

// C is 0 to 3, A 4 or 5, B 6 or 7: the instructions name their tiles.
template <int C, int A, int B>
inline __attribute__((always_inline)) void tile_dot_signed() {
  static_assert(C >= 0 && C < 4 && (A == 4 || A == 5) && (B == 6 || B == 7), "tiles of these roles");
#define MOE_ONE(c, a, b) \
  if constexpr (C == c && A == a && B == b) _tile_dpbssd(c, a, b);
  MOE_ONE(0, 4, 6)
  MOE_ONE(0, 5, 6)
  MOE_ONE(0, 4, 7)
  MOE_ONE(0, 5, 7)
  MOE_ONE(1, 4, 6) MOE_ONE(1, 5, 6) MOE_ONE(1, 4, 7) MOE_ONE(1, 5, 7) MOE_ONE(2, 4, 6) MOE_ONE(2, 5, 6) MOE_ONE(2, 4, 7)
      MOE_ONE(2, 5, 7) MOE_ONE(3, 4, 6) MOE_ONE(3, 5, 6) MOE_ONE(3, 4, 7) MOE_ONE(3, 5, 7)
#undef MOE_ONE
}

#endif

}  // namespace
}  // namespace moe
