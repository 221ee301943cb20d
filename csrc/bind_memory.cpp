#include "bind_memory.h"

#include "common/kept_memory.h"

namespace py = pybind11;

void bind_memory(py::module_& m) {
  using moe::KeptBlock;
  py::class_<KeptBlock>(m, "KeptBlock", py::buffer_protocol(), "Memory that is kept for the next one when it is freed.")
      .def(py::init<size_t>())
      .def_property_readonly("used", &KeptBlock::used, "Whether the memory was in use before.")
      .def_buffer([](KeptBlock& block) {
        return py::buffer_info(reinterpret_cast<uint8_t*>(block.data()), static_cast<py::ssize_t>(block.bytes()));
      });
  m.def("set_kept_limit", &moe::set_kept_limit, "Bytes that are kept at most while nobody uses them.");
  m.def("kept_bytes", &moe::kept_bytes, "Bytes that are kept now.");
}
