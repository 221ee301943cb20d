// The Python module moe_kernels._C: one function per native entry, tensors as views, the GIL released inside.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>

#include "bind_memory.h"
#include "bind_route_predictor.h"
#include "common/borrowed_team.h"
#include "common/cpu_features.h"
#include "common/error.h"
#include "common/thread_pool.h"
#include "cpu/decoding.h"
#include "cpu/dispatch.h"
#include "cpu/grouped_lora.h"
#include "cpu/ops.h"
#include "cpu/packing.h"
#include "cpu/rates.h"
#include "io_bindings.h"

namespace py = pybind11;

namespace {

using moe::QuantizedView;
using moe::TensorView;
using Unlocked = py::call_guard<py::gil_scoped_release>;

TensorView make_view(uintptr_t address, const py::tuple& shape, const py::tuple& strides, int dtype) {
  TensorView view;
  if (shape.size() > TensorView::MAX_DIMS || shape.size() != strides.size())
    throw moe::Error("View: expected as many strides as sizes, at most " + std::to_string(TensorView::MAX_DIMS) +
                     ", got " + std::to_string(shape.size()) + " sizes and " + std::to_string(strides.size()) +
                     " strides");
  if (dtype < 0 || dtype > static_cast<int>(moe::DType::i8))
    throw moe::Error("View: unknown dtype code " + std::to_string(dtype));
  view.data = reinterpret_cast<char*>(address);
  view.dims = static_cast<int32_t>(shape.size());
  view.dtype = static_cast<moe::DType>(dtype);
  for (int i = 0; i < view.dims; ++i) {
    view.shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape.ptr(), i));
    view.strides[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i));
  }
  if (PyErr_Occurred()) throw py::error_already_set();
  return view;
}

QuantizedView make_quantized(int format, const TensorView& data, const TensorView& scale,
                             const TensorView* nested_scale, const TensorView* nested_code, float offset,
                             int64_t columns) {
  if (format != 1 && format != 2) throw moe::Error("Quantized: unknown format " + std::to_string(format));
  const bool nested = nested_scale && nested_code;
  return {format == 1 ? moe::DType::nf4 : moe::DType::i8, data,   scale,  nested, nested ? *nested_scale : TensorView{},
          nested ? *nested_code : TensorView{},           offset, columns};
}

moe::LimitedActivation activation_from(int code, float limit) {
  if (code < 0 || code > static_cast<int>(moe::Activation::gpt_oss))
    throw moe::Error("activation: unknown code " + std::to_string(code));
  return {static_cast<moe::Activation>(code), limit};
}

void bind_gating(py::module_& m) {
  m.def(
      "topk_gating",
      [](const TensorView& logits, const TensorView* bias, const TensorView* noise, const TensorView* mask, int64_t k,
         bool sigmoid, int64_t num_groups, int64_t top_groups, bool renormalize, float scale, const TensorView& weights,
         const TensorView& indices, const TensorView& counts, const TensorView& mean_probability, const TensorView& z,
         const TensorView& entropy, int threads) {
        moe::topk_gating(logits, bias, noise, mask, {k, sigmoid, num_groups, top_groups, renormalize, scale}, weights,
                         indices, counts, mean_probability, z, entropy, threads);
      },
      Unlocked());
  m.def("topk_gating_backward", &moe::topk_gating_backward, Unlocked());
}

void bind_rows(py::module_& m) {
  m.def("route", &moe::route_plan, Unlocked());
  m.def("lowest", &moe::lowest);
  m.def("permute", &moe::permute, Unlocked());
  m.def("unpermute", &moe::unpermute, Unlocked());
  m.def("unpermute_backward", &moe::unpermute_backward, Unlocked());
}

void bind_grouped(py::module_& m) {
  m.def(
      "grouped_mm",
      [](const TensorView& x, const TensorView& w, const TensorView& offsets, bool transposed,
         const TensorView* row_token, const TensorView* bias, const TensorView* row_scale, const TensorView* slot_row,
         const TensorView* base, const TensorView& out, int threads) {
        const moe::Weight weight(w, transposed);
        moe::grouped_mm({x, weight, offsets, row_token, bias, row_scale, slot_row}, base, out, threads);
      },
      Unlocked());
  m.def(
      "grouped_mm_backward",
      [](const TensorView& grad, const TensorView& x, const TensorView& w, const TensorView& offsets, bool transposed,
         const TensorView* row_token, const TensorView* bias, const TensorView* row_scale, const TensorView* slot_row,
         const TensorView* grad_x, const TensorView* grad_w, const TensorView* grad_bias,
         const TensorView* grad_row_scale, int threads) {
        const moe::Weight weight(w, transposed);
        moe::grouped_mm_backward(grad, {x, weight, offsets, row_token, bias, row_scale, slot_row}, grad_x, grad_w,
                                 grad_bias, grad_row_scale, threads);
      },
      Unlocked());
  m.def(
      "grouped_mm_quantized",
      [](const TensorView& x, const QuantizedView& w, const TensorView& offsets, const TensorView* row_token,
         const TensorView* bias, const TensorView* row_scale, const TensorView* slot_row, const TensorView* base,
         bool dynamic, const TensorView& out, int threads) {
        const moe::Weight weight(w);
        moe::grouped_mm({x, weight, offsets, row_token, bias, row_scale, slot_row, dynamic}, base, out, threads);
      },
      Unlocked());
  m.def(
      "grouped_mm_quantized_backward",
      [](const TensorView& grad, const TensorView& x, const QuantizedView& w, const TensorView& offsets,
         const TensorView* row_token, const TensorView* bias, const TensorView* row_scale, const TensorView* slot_row,
         const TensorView* grad_x, const TensorView* grad_bias, const TensorView* grad_row_scale, int threads) {
        const moe::Weight weight(w);
        moe::grouped_mm_backward(grad, {x, weight, offsets, row_token, bias, row_scale, slot_row}, grad_x, nullptr,
                                 grad_bias, grad_row_scale, threads);
      },
      Unlocked());
}

void run_experts(const TensorView& x, const TensorView& indices, const TensorView& weights,
                 const moe::ExpertWeights& experts, const TensorView& out, const TensorView* pre,
                 const TensorView* offsets, const TensorView* row_token, const TensorView* slot_row, int threads) {
  if (!pre || !offsets || !row_token || !slot_row) {
    moe::fused_experts(x, indices, weights, experts, out, nullptr, threads);
    return;
  }
  const moe::Saved saved{*pre, *offsets, *row_token, *slot_row};
  moe::fused_experts(x, indices, weights, experts, out, &saved, threads);
}

void bind_lora(py::module_& m) {
  m.def(
      "grouped_lora",
      [](const TensorView& x, const TensorView& a, const TensorView& b, const TensorView& groups,
         const TensorView& scaling, const TensorView* ranks, const TensorView* base, const TensorView& out,
         int threads) { moe::grouped_lora({x, a, b, groups, scaling, ranks}, base, out, threads); },
      Unlocked());
  m.def(
      "grouped_lora_backward",
      [](const TensorView& grad, const TensorView& x, const TensorView& a, const TensorView& b,
         const TensorView& groups, const TensorView& scaling, const TensorView* ranks, const TensorView* grad_x,
         const TensorView* grad_a, const TensorView* grad_b, const TensorView* grad_scaling, int threads) {
        moe::grouped_lora_backward(grad, {x, a, b, groups, scaling, ranks}, {grad_x, grad_a, grad_b, grad_scaling},
                                   threads);
      },
      Unlocked());
}

void bind_experts(py::module_& m) {
  m.def(
      "fused_experts",
      [](const TensorView& x, const TensorView& indices, const TensorView& weights, const TensorView& gate_up,
         const TensorView& down, const TensorView* gate_up_bias, const TensorView* down_bias, int activation,
         float limit, bool interleaved, bool transposed, const TensorView& out, const TensorView* pre,
         const TensorView* offsets, const TensorView* row_token, const TensorView* slot_row, int threads) {
        const moe::Weight up_weight(gate_up, transposed), down_weight(down, transposed);
        run_experts(x, indices, weights,
                    {up_weight, down_weight, gate_up_bias, down_bias, activation_from(activation, limit), interleaved},
                    out, pre, offsets, row_token, slot_row, threads);
      },
      Unlocked());
  m.def(
      "fused_experts_unchecked",
      [](const TensorView& x, const TensorView& indices, const TensorView& weights, const TensorView& gate_up,
         const TensorView& down, const TensorView* gate_up_bias, const TensorView* down_bias, int activation,
         bool transposed, const TensorView& out, int threads) {
        constexpr int64_t MOST = (int64_t{1} << 31) - 1;
        if (indices.dims != 2 || indices.numel() == 0 || indices.numel() > MOST || moe::lowest(indices) < 0)
          return false;
        const moe::Weight up_weight(gate_up, transposed), down_weight(down, transposed);
        moe::fused_experts(x, indices, weights,
                           {up_weight, down_weight, gate_up_bias, down_bias,
                            activation_from(activation, std::numeric_limits<float>::infinity()), false},
                           out, nullptr, threads);
        return true;
      },
      Unlocked());
  m.def(
      "fused_experts_backward",
      [](const TensorView& grad, const TensorView& x, const TensorView& weights, const TensorView& gate_up,
         const TensorView& down, const TensorView* gate_up_bias, const TensorView* down_bias, const TensorView& pre,
         const TensorView& offsets, const TensorView& row_token, const TensorView& slot_row, int activation,
         float limit, bool interleaved, bool transposed, const TensorView* grad_x, const TensorView* grad_weights,
         const TensorView* grad_gate_up, const TensorView* grad_down, const TensorView* grad_gate_up_bias,
         const TensorView* grad_down_bias, bool add, bool stream, int threads) {
        const moe::Weight up_weight(gate_up, transposed), down_weight(down, transposed);
        moe::fused_experts_backward(
            grad, x, weights,
            {up_weight, down_weight, gate_up_bias, down_bias, activation_from(activation, limit), interleaved},
            {pre, offsets, row_token, slot_row},
            {grad_x, grad_weights, grad_gate_up, grad_down, grad_gate_up_bias, grad_down_bias, add, stream}, threads);
      },
      Unlocked());
  m.def(
      "fused_experts_quantized",
      [](const TensorView& x, const TensorView& indices, const TensorView& weights, const QuantizedView& gate_up,
         const QuantizedView& down, const TensorView* gate_up_bias, const TensorView* down_bias, int activation,
         float limit, bool interleaved, bool dynamic, const TensorView& out, const TensorView* pre,
         const TensorView* offsets, const TensorView* row_token, const TensorView* slot_row, int threads) {
        const moe::Weight up_weight(gate_up), down_weight(down);
        run_experts(
            x, indices, weights,
            {up_weight, down_weight, gate_up_bias, down_bias, activation_from(activation, limit), interleaved, dynamic},
            out, pre, offsets, row_token, slot_row, threads);
      },
      Unlocked());
  m.def(
      "fused_experts_quantized_backward",
      [](const TensorView& grad, const TensorView& x, const TensorView& weights, const QuantizedView& gate_up,
         const QuantizedView& down, const TensorView* gate_up_bias, const TensorView* down_bias, const TensorView& pre,
         const TensorView& offsets, const TensorView& row_token, const TensorView& slot_row, int activation,
         float limit, bool interleaved, const TensorView* grad_x, const TensorView* grad_weights,
         const TensorView* grad_gate_up_bias, const TensorView* grad_down_bias, int threads) {
        const moe::Weight up_weight(gate_up), down_weight(down);
        moe::fused_experts_backward(
            grad, x, weights,
            {up_weight, down_weight, gate_up_bias, down_bias, activation_from(activation, limit), interleaved},
            {pre, offsets, row_token, slot_row},
            {grad_x, grad_weights, nullptr, nullptr, grad_gate_up_bias, grad_down_bias}, threads);
      },
      Unlocked());
}

void bind_decoding(py::module_& m) {
  m.def(
      "rms_norm",
      [](const TensorView& x, const TensorView& weight, float eps, bool rounds_first, const TensorView* base,
         const TensorView& out, int threads) { moe::rms_norm(x, {weight, eps, rounds_first}, base, out, threads); },
      Unlocked());
  m.def(
      "decode_attention",
      [](const TensorView& q, const TensorView& k, const TensorView& v, const TensorView* q_norm,
         const TensorView* k_norm, float eps, bool rounds_first, const TensorView& cos, const TensorView& sin,
         const TensorView& positions, const TensorView& starts, const TensorView& keys, const TensorView& values,
         int64_t column, int64_t window, float scale, const TensorView& out, int threads) {
        const TensorView none;
        const moe::NormWeight of_q{q_norm ? *q_norm : none, eps, rounds_first};
        const moe::NormWeight of_k{k_norm ? *k_norm : none, eps, rounds_first};
        moe::decode_attention({q, k, v, q_norm ? &of_q : nullptr, k_norm ? &of_k : nullptr, cos, sin, positions, starts,
                               keys, values, column, window, scale},
                              out, threads);
      },
      Unlocked());
}

void bind_packing(py::module_& m) { m.def("unpack_bf16", &moe::unpack_bf16, Unlocked()); }

void bind_rates(py::module_& m) {
  m.def("read_rate", &moe::read_rate, Unlocked(), "Bytes per second of reading a buffer once.");
  m.def("product_rate", &moe::product_rate, Unlocked(), "Operations per second of multiply-adds on registers.");
  m.def("product_kinds", &moe::product_kinds, "What product_rate takes here.");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of moe_kernels. Called through moe_kernels.native.";
  py::class_<TensorView>(m, "View", "An address, a shape, strides in elements and a dtype code (moe_kernels.native).")
      .def(py::init(&make_view));
  py::class_<QuantizedView>(m, "Quantized", "A stack of expert matrices in NF4 (format 1) or int8 (format 2).")
      .def(py::init(&make_quantized));
  bind_gating(m);
  bind_rows(m);
  bind_grouped(m);
  bind_lora(m);
  bind_experts(m);
  bind_decoding(m);
  bind_packing(m);
  bind_rates(m);
  bind_route_predictor(m);
  bind_memory(m);
  bind_io(m);
  m.def("isa", [] { return std::string(moe::kernels().name); }, "Name of the instruction set that the kernels use.");
  m.def("usable_isas", &moe::usable_isas, "What MOE_KERNELS_ISA may be here, the best first.");
  m.def(
      "borrow_team",
      [](std::uintptr_t region) { moe::borrow_team(reinterpret_cast<moe::ParallelRegion>(region)); },
      "Run tasks in the OpenMP team behind the address of its GOMP_parallel; 0 gives it back.");
  m.def("pool_workers", &moe::pool_workers, "Worker threads started in this process.");
  m.def(
      "cpu_features",
      [] {
        const moe::CpuFeatures& cpu = moe::cpu_features();
        py::dict found;
        found["avx2"] = cpu.avx2;
        found["avx512"] = cpu.avx512;
        found["avx512_bf16"] = cpu.avx512_bf16;
        found["avx512_vnni"] = cpu.avx512_vnni;
        found["amx_bf16"] = cpu.amx_bf16;
        found["amx_int8"] = cpu.amx_int8;
        found["neon"] = cpu.neon;
        return found;
      },
      "What the processor offers.");
}
