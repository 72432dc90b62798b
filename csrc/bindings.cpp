// Integers to pointers, status to exception, GIL released; nothing else. The same file serves both modules.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "api.h"

namespace py = pybind11;
using namespace fastclf;

namespace {

using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

void check(Status status) {
  if (status.error) throw std::runtime_error(status.error);
}

void bind_gather_rows(py::module_& m) {
  m.def(
      "gather_rows",
      [](Address src, bool half, Address index, Address out, size_t rows, size_t width, int threads, Address stream) {
        check(gather_rows({pointer<const void>(src), half ? DType::float16 : DType::float32, pointer<const int64_t>(index),
                           pointer<float>(out), rows, width},
                          threads, pointer<void>(stream)));
      },
      py::kw_only(), py::arg("src"), py::arg("half"), py::arg("index"), py::arg("out"), py::arg("rows"), py::arg("width"),
      py::arg("threads"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

#ifndef FASTCLF_CUDA

void bind_dropout_mask(py::module_& m) {
  m.def(
      "dropout_mask",
      [](uint64_t seed, uint32_t step, uint32_t layer, double p, Address out, size_t rows, size_t cols, int threads,
         Address stream) {
        check(dropout_mask({seed, step, layer, p, pointer<float>(out), rows, cols}, threads, pointer<void>(stream)));
      },
      py::kw_only(), py::arg("seed"), py::arg("step"), py::arg("layer"), py::arg("p"), py::arg("out"), py::arg("rows"),
      py::arg("cols"), py::arg("threads"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

void bind_isa(py::module_& m) {
  m.def("isa", &isa);
  m.def("use_isa", [](const char* name) { check(use_isa(name)); });
}

#endif

}  // namespace

PYBIND11_MODULE(FASTCLF_MODULE, m) {
  bind_gather_rows(m);
#ifndef FASTCLF_CUDA
  bind_dropout_mask(m);
  bind_isa(m);
#endif
}
