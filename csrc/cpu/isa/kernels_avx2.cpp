// AVX2 with FMA and F16C.
#define MOE_ISA_AVX2 1
#include "table.h"

namespace moe {
extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = make_table("avx2");
}  // namespace moe
