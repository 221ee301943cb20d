// Bfloat16 values packed without loss: python/specmoe/offload/store/packing.py says how they lie.
#pragma once

#include "common/view.h"

namespace moe {

// out (bytes) = the values packed in `stored` (bytes), which may be the end of `out` itself.
void unpack_bf16(const TensorView& stored, const TensorView& out);

}  // namespace moe
