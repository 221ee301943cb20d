#include "cuda/grouped_launch.cuh"

namespace moe::cuda {

template void launch_rows_product(const char*, RowsProduct<__half>&, bool, cudaStream_t);
template void launch_outer_product(const char*, OuterProduct<__half>&, int32_t, cudaStream_t);
template void load_products<__half>();

}  // namespace moe::cuda
