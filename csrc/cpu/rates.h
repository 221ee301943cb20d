// What the machine itself can do, for the floors of the benchmarks: no kernel can be faster than these loops.
#pragma once

#include <string>
#include <vector>

#include "common/view.h"

namespace moe {

// Bytes per second of reading `buffer` once, with `threads` threads; nothing is done with what is read. The buffer
// should be much larger than the caches, and its pages touched before.
double read_rate(const TensorView& buffer, int threads);

// Operations per second, a multiply-add being two, of a loop over registers with `threads` threads. Kinds, each with
// 32-bit sums: "amx_bf16", "amx_int8", "avx512_bf16" (vdpbf16ps), "avx512_vnni" (vpdpbusd), and of float32 "avx512",
// "avx2", "neon" and "scalar" (what the compiler makes of plain C++: SSE2 on x86-64). Throws Error for a kind that this
// processor or this build has not.
double product_rate(const std::string& kind, int threads);

// The kinds that product_rate takes here.
std::vector<std::string> product_kinds();

}  // namespace moe
