// Errors of the native core: one exception type, and checks that name operation, argument, expected and got.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "view.h"

namespace moe {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string describe(const TensorView& view);

// Throws unless `view` has this dtype class, is contiguous and has these sizes (-1 stands for any size).
void check_float(const char* op, const char* name, const TensorView& view, std::initializer_list<int64_t> shape);
void check_type(const char* op, const char* name, const TensorView& view, DType dtype,
                std::initializer_list<int64_t> shape);

// Throws unless `view` is a float tensor (E, rows, columns) whose inner two dimensions have one unit stride.
void check_strided(const char* op, const char* name, const TensorView& view, std::initializer_list<int64_t> shape);

}  // namespace moe
