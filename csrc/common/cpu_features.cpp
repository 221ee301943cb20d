#include "cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace moe {
namespace {

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
