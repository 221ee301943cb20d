// AVX-512 with dot products of bfloat16 pairs and int8 quadruples.
#define MOE_ISA_AVX512 1
#include "int8_quads.h"
#include "low_rank_pairs.h"
#include "nf4_pairs.h"
#include "pairs.h"
#include "table.h"

namespace moe {
extern const Kernels kernels_avx512bf16;
const Kernels kernels_avx512bf16 = make_table("avx512bf16", {&PAIRS, &NF4, &INT8, &INT8_INT8, nullptr, shrink_pairs});
}  // namespace moe
