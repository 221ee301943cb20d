// Barriers in shared memory, the copy engine (TMA) and register allocation of sm_90a.
//
// Names follow the PTX ISA. cuda/emulate/hopper.h has the same functions for kernels that run on a CPU.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"
#include "cuda/tensor_map.h"

#ifdef MOE_EMULATE
#include "cuda/emulate/hopper.h"
#else

namespace moe::cuda::ptx {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Addresses of tiles as matrix_descriptor wants them.
MOE_DEVICE uint32_t descriptor_address(SharedPtr pointer) { return pointer; }

MOE_DEVICE void barrier_init(SharedPtr barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes new barriers known to the copy engine; before the __syncthreads that makes them known to the other threads.
MOE_DEVICE void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

MOE_DEVICE void barrier_arrive(SharedPtr barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// So many bytes of copies belong to the barrier's present phase.
MOE_DEVICE void barrier_expect(SharedPtr barrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits until the phase of this parity is over.
MOE_DEVICE void barrier_wait(SharedPtr barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "WAIT: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE;\n"
      "bra WAIT;\n"
      "DONE: }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// The box of the tensor at (x, y, z) to shared memory, with the swizzle of its map; counts its bytes at the barrier.
MOE_DEVICE void copy_box(SharedPtr to, const TensorMap* map, int32_t x, int32_t y, int32_t z, SharedPtr barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::
          "r"(to),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
      : "memory");
}

MOE_DEVICE void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

// What this thread wrote to shared memory is seen by tensor cores and the copy engine after the next barrier.
MOE_DEVICE void fence_for_tensor_cores() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int REGISTERS>
MOE_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS>
MOE_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

#endif

}  // namespace moe::cuda::ptx

#endif
