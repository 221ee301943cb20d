// Asks the driver for tensor maps. The driver's function is found at run time: nothing links libcuda.
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/kernel.h"
#include "cuda/tensor_map.h"

#ifdef MOE_EMULATE
#include "cuda/emulate/tensor_map.h"
#else
#include <cuda.h>
#endif

namespace moe::cuda {

#ifdef MOE_EMULATE

TensorMap tensor_map(const char*, const BoxedTensor& tensor) {
  TensorMap map{};
  static_assert(sizeof(BoxedTensor) <= sizeof(TensorMap), "");
  emulate::check_tensor(tensor);
  std::memcpy(&map, &tensor, sizeof tensor);
  return map;
}

#else

namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "cuTensorMapEncodeTiled");
#else
  check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found),
        "cuTensorMapEncodeTiled");
#endif
  if (!function || found != cudaDriverEntryPointSuccess)
    throw std::runtime_error("the driver has no cuTensorMapEncodeTiled; CUDA 12.0 is the oldest that has");
  return reinterpret_cast<Encode>(function);
}

}  // namespace

TensorMap tensor_map(const char* op, const BoxedTensor& tensor) {
  static const Encode encode = find_encode();
  static_assert(sizeof(CUtensorMap) == sizeof(TensorMap), "");
  CUtensorMap made;
  const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(tensor.sizes[0]), static_cast<cuuint64_t>(tensor.sizes[1]),
                               static_cast<cuuint64_t>(tensor.sizes[2])};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(tensor.strides[0]) * 2,
                                 static_cast<cuuint64_t>(tensor.strides[1]) * 2};
  const cuuint32_t box[3] = {BOX_WIDTH, static_cast<cuuint32_t>(tensor.rows), 1}, every[3] = {1, 1, 1};
  const CUtensorMapDataType type =
      tensor.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult result =
      encode(&made, type, 3, const_cast<void*>(tensor.data), sizes, strides, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error(std::string(op) + ": cuTensorMapEncodeTiled: error " + std::to_string(result));
  TensorMap map;
  std::memcpy(&map, &made, sizeof map);
  return map;
}

#endif

}  // namespace moe::cuda
