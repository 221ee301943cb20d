// The fused predictor of expert routes, for Python: buffers come as addresses of arrays that the caller keeps alive.
#include "bind_route_predictor.h"

#include <vector>

#include "common/error.h"
#include "cpu/route_predictor.h"

namespace py = pybind11;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

moe::RouteState state_from(const std::vector<uintptr_t>& a) {
  if (a.size() != 13) throw moe::Error("RoutePredictor: expected 13 buffers");
  return {at<float>(a[0]),       at<float>(a[1]),       at<const float>(a[2]), at<const float>(a[3]),
          at<float>(a[4]),       at<const float>(a[5]), at<const float>(a[6]), at<const float>(a[7]),
          at<const float>(a[8]), at<const float>(a[9]), at<float>(a[10]),      at<const int64_t>(a[11]),
          at<const float>(a[12])};
}

}  // namespace

void bind_route_predictor(py::module_& m) {
  using moe::RoutePredictor;
  py::class_<RoutePredictor>(m, "RoutePredictor")
      .def(py::init([](int64_t layers, int64_t experts, int64_t width, int64_t hidden, int64_t window, float fade,
                       float sharpness, const std::vector<uintptr_t>& buffers) {
        return new RoutePredictor(layers, experts, width, hidden, window, fade, sharpness, state_from(buffers));
      }))
      .def("load",
           [](RoutePredictor& self, int64_t layer, const std::vector<uintptr_t>& a) {
             if (a.size() != 7) throw moe::Error("RoutePredictor.load: expected 7 matrices");
             self.load(layer, at<const float>(a[0]), at<const float>(a[1]), at<const float>(a[2]),
                       at<const float>(a[3]), at<const float>(a[4]), at<const float>(a[5]), at<const float>(a[6]));
           })
      .def("forward", &RoutePredictor::forward)
      .def("read", &RoutePredictor::read)
      .def("take", &RoutePredictor::take);
}
