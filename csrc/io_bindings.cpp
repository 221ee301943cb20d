// The reader as a Python class: blocking reads, and requests that are submitted, cancelled and waited for.
#include "io_bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <unordered_map>

#include "common/error.h"
#include "io/reader.h"

namespace py = pybind11;

namespace {

// Waits are cut into this many seconds, between which Python may raise what a signal's handler raised.
constexpr double SLICE = 0.1;

class PyReader {
 public:
  PyReader(int fd, const std::string& method, int lanes, int depth, int64_t piece_bytes, int guesses)
      : reader_(fd, method, lanes, depth, piece_bytes, guesses) {}

  uint64_t submit(int64_t offset, const py::buffer& target, bool urgent) {
    const py::buffer_info info = target.request(true);
    const int64_t bytes = info.size * info.itemsize;
    char* address = static_cast<char*>(info.ptr);
    uint64_t id = 0;
    {
      py::gil_scoped_release unlocked;
      id = reader_.submit(offset, bytes, address, urgent);
    }
    // The memory must not go while it is being written.
    held_.emplace(id, target);
    return id;
  }

  bool cancel(uint64_t id) { return reader_.requests.cancel(id); }

  bool promote(uint64_t id) {
    py::gil_scoped_release unlocked;
    return reader_.promote(id);
  }

  bool ready(uint64_t id) { return reader_.requests.wait(id, 0.0); }

  // None, or what went wrong: (errno or -1 for the end of the file, text).
  py::object wait(uint64_t id) {
    for (;;) {
      bool finished = false;
      {
        py::gil_scoped_release unlocked;
        finished = reader_.requests.wait(id, SLICE);
      }
      if (finished) break;
      if (PyErr_CheckSignals() != 0) {
        {
          py::gil_scoped_release unlocked;
          reader_.requests.abandon(id);
          while (!reader_.requests.wait(id, SLICE)) {
          }
        }
        reader_.requests.take(id);
        held_.erase(id);
        throw py::error_already_set();
      }
    }
    const moe::Outcome outcome = reader_.requests.take(id);
    held_.erase(id);
    if (outcome.error == 0) return py::none();
    return py::make_tuple(outcome.error, moe::describe(outcome));
  }

  void close() {
    {
      py::gil_scoped_release unlocked;
      reader_.close();
    }
  }

  moe::Reader& reader() { return reader_; }

 private:
  moe::Reader reader_;
  std::unordered_map<uint64_t, py::buffer> held_;
};

}  // namespace

void bind_io(py::module_& m) {
  py::class_<PyReader>(m, "Reader", "Asynchronous reads of an open file into memory.")
      .def(py::init<int, const std::string&, int, int, int64_t, int>(), py::arg("fd"), py::arg("method") = "auto",
           py::arg("lanes") = 4, py::arg("depth") = 32, py::arg("piece_bytes") = 1 << 20, py::arg("guesses") = 4)
      .def("submit", &PyReader::submit, py::arg("offset"), py::arg("target"), py::arg("urgent") = true,
           "Begin to fill a buffer from an offset; return the request's number.")
      .def("cancel", &PyReader::cancel, "Drop a request of which nothing has begun; whether it was.")
      .def("promote", &PyReader::promote, "Make an urgent request of one that is not; whether that changed anything.")
      .def("ready", &PyReader::ready, "Whether a request is finished.")
      .def("wait", &PyReader::wait, "Wait for a request; None, or (errno, or -1 for the file's end; text).")
      .def("close", &PyReader::close, "End the reads under way, cancel the others.")
      .def_property_readonly("method", [](PyReader& r) { return r.reader().method; })
      .def_property_readonly("reason", [](PyReader& r) { return r.reader().reason; })
      .def_property_readonly("waiting", [](PyReader& r) { return r.reader().requests.waiting(); })
      .def_property_readonly("under_way", [](PyReader& r) { return r.reader().requests.under_way(); })
      .def("inject_error", [](PyReader& r, int64_t begin, int64_t end, int error,
                              int times) { r.reader().requests.inject_error(begin, end, error, times); })
      .def("inject_short", [](PyReader& r, int64_t limit) { r.reader().requests.inject_short(limit); });
}
