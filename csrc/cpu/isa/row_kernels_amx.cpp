// The products of the backward on AMX: a file of their own, since each takes the compiler long.
#define MOE_ISA_AVX512 1
#include "amx_outer.h"
#include "amx_rows.h"

namespace moe {
extern const RowForm row_kernels_amx;
const RowForm row_kernels_amx = {rows_product_amx, rows_results_amx, rows_columns_amx, outer_product_amx,
                                 outer_block_amx,  rows_scratch_amx, outer_scratch_amx};
}  // namespace moe
