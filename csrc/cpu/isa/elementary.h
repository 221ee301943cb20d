// Elementary functions on vectors, to a few units in the last place of float32.
#pragma once

#include "vec.h"

namespace moe {
namespace {

// e^x. The polynomial for (e^r - 1 - r) / r² on |r| <= ln2 / 2 interpolates at Chebyshev nodes; below 1 unit in the
// last place. Infinities, NaN and subnormal results are right.
MOE_INLINE Vec exp(Vec x) {
  const Vec low = splat(-104.0f), high = splat(89.0f);
  Vec bounded = x < low ? low : x;
  bounded = bounded > high ? high : bounded;
  const Vec shift = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer
  const Vec shifted = fma(bounded, splat(1.44269504f), shift);
  const Vec n = shifted - shift;
  Vec r = fma(n, splat(-0x1.62e4p-1f), bounded);
  r = fma(n, splat(-0x1.7f7d1cp-20f), r);
  Vec q = splat(0x1.6d110ap-10f);
  q = fma(q, r, splat(0x1.120b6ep-7f));
  q = fma(q, r, splat(0x1.55551ap-5f));
  q = fma(q, r, splat(0x1.5554dcp-3f));
  q = fma(q, r, splat(0.5f));
  const Vec e = splat(1.0f) + fma(q * r, r, r);
  // 2^n in two factors, since n itself may lie outside the exponents of normal numbers.
  const VecI power = reinterpret_cast<VecI>(shifted) - 0x4b400000;
  const VecI half = power >> 1;
  const Vec first = reinterpret_cast<Vec>((half + 127) << 23);
  const Vec second = reinterpret_cast<Vec>((power - half + 127) << 23);
  return e * first * second;
}

// 1 / (1 + e^-x) and its complement, neither losing digits nor overflowing at either end.
struct Sigmoid {
  Vec value;
  Vec complement;
};

MOE_INLINE Sigmoid sigmoid_pair(Vec x) {
  const VecI negative = x < splat(0.0f);
  const Vec e = exp(negative ? x : -x);
  const Vec large = splat(1.0f) / (splat(1.0f) + e);
  const Vec small = e * large;
  return {negative ? small : large, negative ? large : small};
}

// What x · x loses by rounding.
MOE_INLINE Vec square_error(Vec x, Vec square) {
#if defined(MOE_ISA_SCALAR)
  // Dekker's product: halves short enough that their products are exact.
  const Vec high = reinterpret_cast<Vec>(reinterpret_cast<VecU>(x) & 0xfffff000u), low = x - high;
  return ((high * high - square) + splat(2.0f) * high * low) + low * low;
#else
  return fma(x, x, -square);
#endif
}

// Distribution and density of the standard normal.
struct Normal {
  Vec cdf;
  Vec density;
};

// With z = |x| / √2 and u = (z - 2) / (z + 2), erfc(z) · e^(z²) · (1 + 2z) is a polynomial in u to 0.5 units in the
// last place (Chebyshev nodes, z up to 10, where the density is 0 in float32). e^(-x²/2) gets x² in two parts, so that
// the tail keeps its digits.
MOE_INLINE Normal normal(Vec x) {
  const Vec square = x * x;
  const Vec rest = square_error(x, square);
  const Vec gauss = exp(square * splat(-0.5f));
  const Vec tail = fma(gauss, rest * splat(-0.5f), gauss);
  const Vec z = reinterpret_cast<Vec>(reinterpret_cast<VecU>(x) & 0x7fffffff) * splat(0.70710678f);
  const Vec bounded = z > splat(10.0f) ? splat(10.0f) : z;
  const Vec u = (bounded - splat(2.0f)) / (bounded + splat(2.0f));
  Vec p = splat(-0.00042412253f);
  p = fma(p, u, splat(-0.0012641195f));
  p = fma(p, u, splat(0.0013277903f));
  p = fma(p, u, splat(0.008664255f));
  p = fma(p, u, splat(-0.008060825f));
  p = fma(p, u, splat(-0.054214265f));
  p = fma(p, u, splat(0.16405492f));
  p = fma(p, u, splat(-0.16603042f));
  p = fma(p, u, splat(-0.09276395f));
  p = fma(p, u, splat(1.2769784f));
  // Where x² overflows, its rounding error is NaN and the density 0.
  const Vec safe_tail = square > splat(1e4f) ? splat(0.0f) : tail;
  const Vec outer = splat(0.5f) * safe_tail * p / fma(splat(2.0f), bounded, splat(1.0f));
  return {x > splat(0.0f) ? splat(1.0f) - outer : outer, safe_tail * splat(0.39894228f)};
}

}  // namespace
}  // namespace moe
