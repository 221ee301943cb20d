// The matrix product of a warpgroup on Hopper: both operands in shared memory, the sums in registers.
//
// cuda/emulate/hopper.h has the same functions for kernels that run on a CPU.
#pragma once

#include <cstdint>

#include "cuda/hopper.cuh"

namespace moe::cuda::ptx {

// An operand tile in shared memory with the 128-byte swizzle, as the instruction wants it described: the address, the
// "leading" and the "stride" offset, all in units of 16 bytes, and the kind of swizzle. `address` lies on a multiple of
// 1024 bytes plus a number of bytes within the first row.
//   along K:   rows of 64 elements of the sum; `stride` from eight rows to the next eight, `leading` is not used
//   across K:  blocks of 64 elements of the output; `leading` from block to block, `stride` from eight k to the next
MOE_DEVICE uint64_t matrix_descriptor(uint32_t address, uint32_t leading, uint32_t stride) {
  constexpr uint64_t SWIZZLE_128 = uint64_t{1} << 62;
  return SWIZZLE_128 | uint64_t{stride >> 4 & 0x3fff} << 32 | uint64_t{leading >> 4 & 0x3fff} << 16 |
         (address >> 4 & 0x3fff);
}

#ifndef MOE_EMULATE

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

MOE_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
MOE_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING>
MOE_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#define MOE_EIGHT_SUMS(d, i)                                                                                  \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7])
// clang-format off
#define MOE_WGMMA_M64N256K16(TYPE)                                                                       \
  asm volatile(                                                                                          \
      "{ .reg .pred p; setp.ne.b32 p, %130, 0; "                                                         \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " {"                                  \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "  \
      "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "  \
      "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "  \
      "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "  \
      "%78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, "  \
      "%97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, "    \
      "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"         \
      "}, %128, %129, p, 1, 1, %131, %132; }"                                                            \
      : MOE_EIGHT_SUMS(d, 0), MOE_EIGHT_SUMS(d, 8), MOE_EIGHT_SUMS(d, 16), MOE_EIGHT_SUMS(d, 24),        \
        MOE_EIGHT_SUMS(d, 32), MOE_EIGHT_SUMS(d, 40), MOE_EIGHT_SUMS(d, 48), MOE_EIGHT_SUMS(d, 56),      \
        MOE_EIGHT_SUMS(d, 64), MOE_EIGHT_SUMS(d, 72), MOE_EIGHT_SUMS(d, 80), MOE_EIGHT_SUMS(d, 88),      \
        MOE_EIGHT_SUMS(d, 96), MOE_EIGHT_SUMS(d, 104), MOE_EIGHT_SUMS(d, 112), MOE_EIGHT_SUMS(d, 120)    \
      : "l"(a), "l"(b), "r"(add ? 1 : 0), "n"(A_ACROSS_K ? 1 : 0), "n"(B_ACROSS_K ? 1 : 0))
// clang-format on

// d (64 x 256) = a (64 x 16) b (16 x 256), added to what d holds where `add` says so. Asynchronous.
template <bool A_ACROSS_K, bool B_ACROSS_K>
MOE_DEVICE void wgmma(float (&d)[128], uint64_t a, uint64_t b, bool add, __nv_bfloat16) {
  MOE_WGMMA_M64N256K16("bf16");
}
template <bool A_ACROSS_K, bool B_ACROSS_K>
MOE_DEVICE void wgmma(float (&d)[128], uint64_t a, uint64_t b, bool add, __half) {
  MOE_WGMMA_M64N256K16("f16");
}

#undef MOE_WGMMA_M64N256K16
#undef MOE_EIGHT_SUMS

#endif
#endif

}  // namespace moe::cuda::ptx
