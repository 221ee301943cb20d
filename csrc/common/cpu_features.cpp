#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe {
namespace {

#if defined(__x86_64__)
// Whether the system saves tiles, and lets this process use them: Linux wants to be asked, once for all threads.
bool tiles_allowed() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return false;  // no xgetbv
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned TILE_CONFIG = 1u << 17, TILE_DATA = 1u << 18;
  if ((low & (TILE_CONFIG | TILE_DATA)) != (TILE_CONFIG | TILE_DATA)) return false;
#if defined(__linux__)
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return false;
#endif
}
#endif

CpuFeatures detect() {
  CpuFeatures found;
#if defined(__x86_64__)
  // __builtin_cpu_supports also asks whether the operating system saves the wide registers.
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & (1u << 29));
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
  found.avx512 = found.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (found.avx512 && __get_cpuid_count(7, 0, &a, &b, &c, &d)) found.avx512_vnni = c & (1u << 11);
  if (found.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512_bf16 = a & (1u << 5);
  if (found.avx512 && __get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    const bool tile = d & (1u << 24), bf16 = d & (1u << 22), int8 = d & (1u << 25);
    if (tile && (bf16 || int8) && tiles_allowed()) {
      found.amx_bf16 = bf16;
      found.amx_int8 = int8;
    }
  }
#elif defined(__aarch64__)
  found.neon = true;  // part of the base architecture
#endif
  return found;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures found = detect();
  return found;
}

}  // namespace moe
