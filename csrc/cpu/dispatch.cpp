#include "dispatch.h"

#include <cstdlib>

#include "common/cpu_features.h"
#include "common/error.h"

namespace moe {

#if defined(MOE_KERNELS_HAVE_AMX)
extern const Kernels kernels_amx;
#endif
#if defined(MOE_KERNELS_HAVE_AVX512BF16)
extern const Kernels kernels_avx512bf16;
#endif
#if defined(MOE_KERNELS_HAVE_AVX512)
extern const Kernels kernels_avx512;
#endif
#if defined(MOE_KERNELS_HAVE_AVX2)
extern const Kernels kernels_avx2;
#endif
#if defined(MOE_KERNELS_HAVE_NEON)
extern const Kernels kernels_neon;
#endif
extern const Kernels kernels_scalar;

namespace {

// What this build and this processor have in common, the best first.
std::vector<const Kernels*> usable_tables() {
  const CpuFeatures& cpu = cpu_features();
  std::vector<const Kernels*> tables;
#if defined(MOE_KERNELS_HAVE_AMX) && !defined(MOE_EMULATE_AMX)
  if (cpu.amx_bf16 && cpu.amx_int8 && cpu.avx512_bf16 && cpu.avx512_vnni) tables.push_back(&kernels_amx);
#endif
#if defined(MOE_KERNELS_HAVE_AVX512BF16)
  if (cpu.avx512_bf16 && cpu.avx512_vnni) tables.push_back(&kernels_avx512bf16);
#endif
#if defined(MOE_KERNELS_HAVE_AVX512)
  if (cpu.avx512) tables.push_back(&kernels_avx512);
#endif
#if defined(MOE_KERNELS_HAVE_AVX2)
  if (cpu.avx2) tables.push_back(&kernels_avx2);
#endif
#if defined(MOE_KERNELS_HAVE_NEON)
  if (cpu.neon) tables.push_back(&kernels_neon);
#endif
  static_cast<void>(cpu);
  tables.push_back(&kernels_scalar);
#if defined(MOE_KERNELS_HAVE_AMX) && defined(MOE_EMULATE_AMX)
  if (cpu.avx512_bf16 && cpu.avx512_vnni) tables.push_back(&kernels_amx);
#endif
  return tables;
}

const Kernels& choose() {
  const std::vector<const Kernels*> tables = usable_tables();
  const char* wanted = std::getenv("MOE_KERNELS_ISA");
  if (!wanted || !*wanted) return *tables.front();
  std::string names;
  for (const Kernels* table : tables) {
    if (std::string(wanted) == table->name) return *table;
    names += (names.empty() ? "" : ", ") + std::string(table->name);
  }
  throw Error("MOE_KERNELS_ISA: expected one of " + names + " (what this build and this processor have), got '" +
              wanted + "'");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

std::vector<std::string> usable_isas() {
  std::vector<std::string> names;
  for (const Kernels* table : usable_tables()) names.push_back(table->name);
  return names;
}

}  // namespace moe
