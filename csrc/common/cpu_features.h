// What the processor offers, asked once.
#pragma once

namespace moe {

struct CpuFeatures {
  bool avx2 = false;         // AVX2, FMA and F16C
  bool avx512 = false;       // AVX-512 F, BW, VL, DQ on top of the above
  bool avx512_bf16 = false;  // dot products of bfloat16 pairs
  bool avx512_vnni = false;  // dot products of int8 quadruples
  bool amx_bf16 = false;     // tile products of bfloat16, and the system's leave to use tiles
  bool amx_int8 = false;     // tile products of int8, the same
  bool neon = false;
};

const CpuFeatures& cpu_features();

}  // namespace moe
