// Portable vectors of four floats: what every processor of the architecture runs.
#define MOE_ISA_SCALAR 1
#include "table.h"

namespace moe {
extern const Kernels kernels_scalar;
const Kernels kernels_scalar = make_table("scalar");
}  // namespace moe
