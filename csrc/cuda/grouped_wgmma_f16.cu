#include "cuda/grouped_wgmma_launch.cuh"

namespace moe::cuda {

template void launch_rows_product_wgmma(const char*, RowsProduct<__half>&, bool, cudaStream_t);
template void launch_outer_product_wgmma(const char*, OuterProduct<__half>&, int32_t, cudaStream_t);
template void load_products_wgmma<__half>();

}  // namespace moe::cuda
