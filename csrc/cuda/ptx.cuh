// The instructions of tensor cores and asynchronous copies that C++ has no name for.
//
// cuda/emulate/ptx.h has the same functions for kernels that run on a CPU.
#pragma once

#include <cstdint>

#include "cuda/kernel.h"

#ifdef MOE_EMULATE
#include "cuda/emulate/ptx.h"
#else

namespace moe::cuda {

// An address in shared memory.
using SharedPtr = uint32_t;

MOE_DEVICE SharedPtr shared_address(void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

namespace ptx {

// 16 bytes to shared memory; zeros, and no read, where `valid` is false.
MOE_DEVICE void copy_async(SharedPtr to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0));
}

MOE_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;"); }

// Waits until at most `PENDING` of this thread's groups are under way.
template <int PENDING>
MOE_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8x8 matrices of 16-bit elements. Lane l names the row l % 8 of matrix l / 8 and receives, of each matrix, the
// elements 2 (l % 4) and the next of row l / 4; of its transpose with TRANSPOSED.
template <bool TRANSPOSED>
MOE_DEVICE void load_matrices(uint32_t (&r)[4], SharedPtr row) {
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// c (16x8) += a (16x16) b (16x8), in float32.
MOE_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

MOE_DEVICE void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace ptx
}  // namespace moe::cuda

#endif
