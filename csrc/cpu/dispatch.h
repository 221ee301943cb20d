// Which instruction set the kernels run on. Kept apart from the table, whose includers may hold no standard templates.
#pragma once

#include <string>
#include <vector>

#include "isa/kernels.h"

namespace moe {

// The table of the instruction set in use: the best one that processor and build have, or the one that the
// environment variable MOE_KERNELS_ISA names. Throws Error, naming the usable ones, where that cannot be.
const Kernels& kernels();

// Names that MOE_KERNELS_ISA may have here, the best first.
std::vector<std::string> usable_isas();

}  // namespace moe
