// AVX-512 F, BW, VL and DQ.
#define MOE_ISA_AVX512 1
#include "table.h"

namespace moe {
extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = make_table("avx512");
}  // namespace moe
