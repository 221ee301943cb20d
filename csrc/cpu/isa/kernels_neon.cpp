// NEON, part of every 64-bit ARM processor.
#define MOE_ISA_NEON 1
#include "table.h"

namespace moe {
extern const Kernels kernels_neon;
const Kernels kernels_neon = make_table("neon");
}  // namespace moe
