// moe_kernels._cuda: the CUDA kernels, taking addresses, shapes and a stream handle.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cuda/experts_bindings.h"
#include "cuda/permute.h"
#include "cuda/runtime.h"

namespace py = pybind11;
using moe::DType;
using moe::TensorView;

namespace {

TensorView make_view(uint64_t address, const std::vector<int64_t>& shape, const std::vector<int64_t>& strides,
                     int dtype) {
  if (shape.size() != strides.size() || shape.size() > TensorView::MAX_DIMS)
    throw std::invalid_argument("View: expected as many strides as sizes, at most " +
                                std::to_string(TensorView::MAX_DIMS));
  TensorView view;
  view.data = reinterpret_cast<char*>(static_cast<uintptr_t>(address));
  view.dims = static_cast<int32_t>(shape.size());
  view.dtype = static_cast<DType>(dtype);
  for (size_t i = 0; i < shape.size(); ++i) {
    view.shape[i] = shape[i];
    view.strides[i] = strides[i];
  }
  return view;
}

cudaStream_t stream_of(uint64_t handle) { return reinterpret_cast<cudaStream_t>(static_cast<uintptr_t>(handle)); }

// Not a pointer that may be null: pybind11 does not take None for one where another module knows the class, as
// moe_kernels._C does.
using MaybeView = std::optional<TensorView>;
const TensorView* pointer(const MaybeView& view) { return view ? &*view : nullptr; }

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  using Release = py::call_guard<py::gil_scoped_release>;

  // Local to this module: moe_kernels._C has its own View, and neither needs the other to be loaded.
  py::class_<TensorView>(m, "View", py::module_local())
      .def(py::init(&make_view), py::arg("address"), py::arg("shape"), py::arg("strides"), py::arg("dtype"));

  m.def(
      "load",
      [](int device) {
        moe::cuda::load(device);
        moe::cuda::load_experts(device);
        moe::cuda::load_expert_rows(device);
      },
      py::arg("device"), Release());
  moe::cuda::bind_experts(m);
  m.def(
      "permute",
      [](const TensorView& x, const TensorView& offsets, const TensorView& row_token, const TensorView& out, int device,
         uint64_t stream) { moe::cuda::permute(x, offsets, row_token, out, device, stream_of(stream)); },
      py::arg("x"), py::arg("offsets"), py::arg("row_token"), py::arg("out"), py::arg("device"), py::arg("stream"),
      Release());
  m.def(
      "unpermute",
      [](const TensorView& rows, const TensorView& slot_row, const MaybeView& weights, const TensorView& out,
         int device,
         uint64_t stream) { moe::cuda::unpermute(rows, slot_row, pointer(weights), out, device, stream_of(stream)); },
      py::arg("rows"), py::arg("slot_row"), py::arg("weights"), py::arg("out"), py::arg("device"), py::arg("stream"),
      Release());
  m.def(
      "unpermute_backward",
      [](const TensorView& grad, const TensorView& rows, const TensorView& slot_row, const MaybeView& weights,
         const TensorView& grad_rows, const MaybeView& grad_weights, int device, uint64_t stream) {
        moe::cuda::unpermute_backward(grad, rows, slot_row, pointer(weights), grad_rows, pointer(grad_weights), device,
                                      stream_of(stream));
      },
      py::arg("grad"), py::arg("rows"), py::arg("slot_row"), py::arg("weights"), py::arg("grad_rows"),
      py::arg("grad_weights"), py::arg("device"), py::arg("stream"), Release());
}
