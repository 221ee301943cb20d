#include "cuda/grouped_launch.cuh"

namespace moe::cuda {

template void launch_rows_product(const char*, RowsProduct<__nv_bfloat16>&, bool, cudaStream_t);
template void launch_outer_product(const char*, OuterProduct<__nv_bfloat16>&, int32_t, cudaStream_t);
template void load_products<__nv_bfloat16>();

}  // namespace moe::cuda
