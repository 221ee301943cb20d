// The entries of experts.h and expert_rows.h as Python functions.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>

#include "cuda/expert_rows.h"
#include "cuda/experts.h"

namespace moe::cuda {

inline void bind_experts(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace py::literals;
  using View = const TensorView&;
  using Maybe = const std::optional<TensorView>&;
  using Release = py::call_guard<py::gil_scoped_release>;
  auto on = [](uint64_t handle) { return reinterpret_cast<cudaStream_t>(static_cast<uintptr_t>(handle)); };
  auto at = [](Maybe view) { return view ? &*view : nullptr; };

  m.def(
      "grouped_mm",
      [on, at](View x, View w, View offsets, Maybe row_token, Maybe bias, Maybe row_scale, View out, int device,
               uint64_t stream) {
        grouped_mm(x, w, offsets, at(row_token), at(bias), at(row_scale), out, device, on(stream));
      },
      "x"_a, "w"_a, "offsets"_a, "row_token"_a, "bias"_a, "row_scale"_a, "out"_a, "device"_a, "stream"_a, Release());
  m.def(
      "expert_up",
      [on, at](View x, View gate_up, View offsets, View row_token, Maybe bias, int activation, float limit, bool gated,
               bool interleaved, View out, Maybe pre, int device, uint64_t stream) {
        expert_up(x, gate_up, offsets, row_token, at(bias), {activation, limit, gated, interleaved}, out, at(pre),
                  device, on(stream));
      },
      "x"_a, "gate_up"_a, "offsets"_a, "row_token"_a, "bias"_a, "activation"_a, "limit"_a, "gated"_a, "interleaved"_a,
      "out"_a, "pre"_a, "device"_a, "stream"_a, Release());
  m.def("expert_dots", &expert_dots, "intermediate"_a);
  m.def(
      "expert_down_backward",
      [on, at](View grad, View down, View offsets, View row_token, View pre, View row_weight, int activation,
               float limit, bool gated, bool interleaved, View weighted, View grad_pre, Maybe dots, int device,
               uint64_t stream) {
        expert_down_backward(grad, down, offsets, row_token, pre, row_weight, {activation, limit, gated, interleaved},
                             weighted, grad_pre, at(dots), device, on(stream));
      },
      "grad"_a, "down"_a, "offsets"_a, "row_token"_a, "pre"_a, "row_weight"_a, "activation"_a, "limit"_a, "gated"_a,
      "interleaved"_a, "weighted"_a, "grad_pre"_a, "dots"_a, "device"_a, "stream"_a, Release());
  m.def(
      "grouped_outer",
      [on, at](View a, Maybe a_token, View b, Maybe b_token, View offsets, View out, int device, uint64_t stream) {
        grouped_outer(a, at(a_token), b, at(b_token), offsets, out, device, on(stream));
      },
      "a"_a, "a_token"_a, "b"_a, "b_token"_a, "offsets"_a, "out"_a, "device"_a, "stream"_a, Release());
  m.def(
      "row_weight",
      [on, at](View slot_row, View weights, View out, int device, uint64_t stream) {
        row_weight(slot_row, weights, out, device, on(stream));
      },
      "slot_row"_a, "weights"_a, "out"_a, "device"_a, "stream"_a, Release());
  m.def(
      "slot_gradient",
      [on, at](View dots, View slot_row, View grad, Maybe bias, View offsets, View out, int device, uint64_t stream) {
        slot_gradient(dots, slot_row, grad, at(bias), offsets, out, device, on(stream));
      },
      "dots"_a, "slot_row"_a, "grad"_a, "bias"_a, "offsets"_a, "out"_a, "device"_a, "stream"_a, Release());
  m.def(
      "column_sums",
      [on, at](View x, View offsets, Maybe row_token, Maybe scale, View out, int device, uint64_t stream) {
        column_sums(x, offsets, at(row_token), at(scale), out, device, on(stream));
      },
      "x"_a, "offsets"_a, "row_token"_a, "scale"_a, "out"_a, "device"_a, "stream"_a, Release());
  m.def(
      "token_sums",
      [on, at](View rows, View order, View starts, View out, int device, uint64_t stream) {
        token_sums(rows, order, starts, out, device, on(stream));
      },
      "rows"_a, "order"_a, "starts"_a, "out"_a, "device"_a, "stream"_a, Release());
}

}  // namespace moe::cuda
