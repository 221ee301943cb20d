// AMX, with AVX-512 for everything that is no product of matrices.
#define MOE_ISA_AVX512 1
#include "amx_int8.h"
#include "amx_nf4.h"
#include "amx_pairs.h"
#include "table.h"

namespace moe {
extern const Kernels kernels_amx;
const Kernels kernels_amx = make_table("amx", {&AMX_PAIRS, &AMX_NF4, &AMX_INT8, &AMX_INT8_INT8});
}  // namespace moe
