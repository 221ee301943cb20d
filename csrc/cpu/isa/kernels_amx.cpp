// AMX, with AVX-512 for everything that is no product of matrices.
#define MOE_ISA_AVX512 1
#include "amx_dense.h"
#include "amx_int8.h"
#include "amx_low_rank.h"
#include "amx_nf4.h"
#include "stream.h"
#include "table.h"

namespace moe {
extern const RowForm row_kernels_amx;
extern const Kernels kernels_amx;
const Kernels kernels_amx = make_table("amx", {&AMX_DENSE, &AMX_NF4, &AMX_INT8, &AMX_INT8_INT8, &row_kernels_amx,
                                               shrink_amx, pack_expand_amx, expand_amx, stream_transposed});
}  // namespace moe
