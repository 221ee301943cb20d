// moe_kernels._cuda: the CUDA kernels, taking addresses, shapes and a stream handle.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

#include "cuda/experts_bindings.h"
#include "cuda/permute.h"
#include "cuda/route.h"
#include "cuda/runtime.h"
#include "cuda/topk_gating.h"

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
        moe::cuda::DeviceGuard guard(device);
        moe::cuda::load_permute();
        moe::cuda::load_route();
        moe::cuda::load_topk_gating();
        moe::cuda::load_topk_gating_backward();
        moe::cuda::load_experts();
        moe::cuda::load_expert_rows();
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

  m.def("route_scratch", &moe::cuda::route_scratch, py::arg("slots"), py::arg("experts"));
  m.def(
      "route",
      [](const TensorView& indices, const TensorView& offsets, const TensorView& row_token, const TensorView& slot_row,
         const TensorView& scratch, int device, uint64_t stream) {
        moe::cuda::route(indices, offsets, row_token, slot_row, scratch, device, stream_of(stream));
      },
      py::arg("indices"), py::arg("offsets"), py::arg("row_token"), py::arg("slot_row"), py::arg("scratch"),
      py::arg("device"), py::arg("stream"), Release());

  m.def("topk_gating_scratch", &moe::cuda::topk_gating_scratch, py::arg("tokens"), py::arg("experts"));
  m.def(
      "topk_gating",
      [](const TensorView& logits, const MaybeView& bias, const MaybeView& noise, const MaybeView& mask, int64_t k,
         bool sigmoid, int64_t num_groups, int64_t top_groups, bool renormalize, float scale, const TensorView& weights,
         const TensorView& indices, const TensorView& counts, const TensorView& mean_probability, const TensorView& z,
         const TensorView& entropy, const TensorView& scratch, int device, uint64_t stream) {
        moe::cuda::topk_gating(logits, pointer(bias), pointer(noise), pointer(mask),
                               {k, sigmoid, num_groups, top_groups, renormalize, scale}, weights, indices, counts,
                               mean_probability, z, entropy, scratch, device, stream_of(stream));
      },
      py::arg("logits"), py::arg("bias"), py::arg("noise"), py::arg("mask"), py::arg("k"), py::arg("sigmoid"),
      py::arg("num_groups"), py::arg("top_groups"), py::arg("renormalize"), py::arg("scale"), py::arg("weights"),
      py::arg("indices"), py::arg("counts"), py::arg("mean_probability"), py::arg("z"), py::arg("entropy"),
      py::arg("scratch"), py::arg("device"), py::arg("stream"), Release());
  m.def(
      "topk_gating_backward",
      [](const TensorView& grad_weights, const TensorView& grad_mean_probability, const TensorView& grad_z,
         const TensorView& grad_entropy, const TensorView& logits, const MaybeView& noise, const MaybeView& mask,
         const TensorView& weights, const TensorView& indices, bool sigmoid, bool renormalize, float scale,
         const TensorView& grad_logits, int device, uint64_t stream) {
        moe::cuda::topk_gating_backward(grad_weights, grad_mean_probability, grad_z, grad_entropy, logits,
                                        pointer(noise), pointer(mask), weights, indices, sigmoid, renormalize, scale,
                                        grad_logits, device, stream_of(stream));
      },
      py::arg("grad_weights"), py::arg("grad_mean_probability"), py::arg("grad_z"), py::arg("grad_entropy"),
      py::arg("logits"), py::arg("noise"), py::arg("mask"), py::arg("weights"), py::arg("indices"), py::arg("sigmoid"),
      py::arg("renormalize"), py::arg("scale"), py::arg("grad_logits"), py::arg("device"), py::arg("stream"),
      Release());
}
