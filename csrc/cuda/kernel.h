// Included by every file with a kernel: CUDA's own headers or, with MOE_EMULATE, their emulation on a CPU; shared
// memory that the emulation can fill with NaN; and the launch.
#pragma once

#include <utility>

#include "cuda/runtime.h"

#ifdef MOE_EMULATE
#include "cuda/emulate/intrinsics.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#define MOE_HOST_DEVICE __host__ __device__ __forceinline__
#define MOE_DEVICE __device__ __forceinline__

#ifdef MOE_EMULATE
#define MOE_SHARED(Type, name, ...) \
  static Type name __VA_ARGS__;     \
  ::moe::emulate::poison(&name, sizeof(name))
#define MOE_DYNAMIC_SHARED(name) unsigned char* name = ::moe::emulate::dynamic_shared()
#else
// MOE_SHARED(float, partial, [4]); declares `__shared__ float partial[4];`
#define MOE_SHARED(Type, name, ...) __shared__ Type name __VA_ARGS__
// `name`: the bytes that the launch asked for, at a multiple of 1024 (what TMA's widest swizzle needs).
#define MOE_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]
#endif

namespace moe::cuda {

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...); a launch that fails throws with the op's name.
template <typename... P, typename... A>
void launch(const char* op, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            A&&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;  // nothing to do, which the runtime calls an error
#ifdef MOE_EMULATE
  (void)stream;
  try {
    emulate::launch(grid, block, shared_bytes, kernel, std::forward<A>(arguments)...);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(op) + ": " + error.what());
  }
#else
  kernel<<<grid, block, shared_bytes, stream>>>(std::forward<A>(arguments)...);
  check(cudaGetLastError(), op);
#endif
}

// Load a kernel onto the current device; with more than 48 KB of dynamic shared memory, allow it that.
template <typename... P>
void load_kernel(void (*kernel)(P...), size_t shared_bytes = 0) {
  const void* entry = reinterpret_cast<const void*>(kernel);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, entry), "loading a kernel");
  if (shared_bytes > 48 * 1024)
    check(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)),
          "shared memory of a kernel");
}

}  // namespace moe::cuda
