#include "cuda/grouped_wgmma_launch.cuh"

namespace moe::cuda {

template void launch_rows_product_wgmma(const char*, RowsProduct<__nv_bfloat16>&, bool, cudaStream_t);
template void launch_outer_product_wgmma(const char*, OuterProduct<__nv_bfloat16>&, int32_t, cudaStream_t);
template void load_products_wgmma<__nv_bfloat16>();

}  // namespace moe::cuda
