// Integers to pointers, status to exception, GIL released; nothing else. The GPU's module: cuda/bindings.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

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
        check(gather_rows({pointer<const void>(src), half ? DType::float16 : DType::float32,
                           pointer<const int64_t>(index), pointer<float>(out), rows, width},
                          threads, pointer<void>(stream)));
      },
      py::kw_only(), py::arg("src"), py::arg("half"), py::arg("index"), py::arg("out"), py::arg("rows"),
      py::arg("width"), py::arg("threads"), py::arg("stream"), py::call_guard<py::gil_scoped_release>());
}

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

void bind_draw_windows(py::module_& m) {
  m.def(
      "draw_windows",
      [](Address src, Address shape, bool bytes, Address part, Address size, Address matrix, Address pixel_ops,
         Address numbers, size_t n, size_t n_ops, size_t width, size_t sz, float top, std::array<float, 3> mean,
         std::array<float, 3> std, Address out, int threads) {
        check(draw_windows({pointer<const uint64_t>(src),
                            pointer<const int64_t>(shape),
                            bytes,
                            pointer<const float>(part),
                            pointer<const int64_t>(size),
                            pointer<const float>(matrix),
                            pointer<const int64_t>(pixel_ops),
                            pointer<const float>(numbers),
                            n,
                            n_ops,
                            width,
                            sz,
                            top,
                            {mean[0], mean[1], mean[2]},
                            {std[0], std[1], std[2]},
                            pointer<float>(out)},
                           threads));
      },
      py::kw_only(), py::arg("src"), py::arg("shape"), py::arg("bytes"), py::arg("part"), py::arg("size"),
      py::arg("matrix"), py::arg("pixel_ops"), py::arg("numbers"), py::arg("n"), py::arg("n_ops"), py::arg("width"),
      py::arg("sz"), py::arg("top"), py::arg("mean"), py::arg("std"), py::arg("out"), py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}

// n_in, n_out, p, eps, bn_momentum, and the addresses of weight, bias, gamma, beta, running mean and variance.
using LayerTuple =
    std::tuple<size_t, size_t, double, float, float, Address, Address, Address, Address, Address, Address>;

std::vector<HeadLayer> head_layers(const std::vector<LayerTuple>& tuples) {
  if (tuples.empty()) throw std::invalid_argument("head: layers must not be empty");
  std::vector<HeadLayer> layers;
  for (const auto& [n_in, n_out, p, eps, momentum, weight, bias, gamma, beta, mean, var] : tuples) {
    layers.push_back({n_in, n_out, p, eps, momentum, pointer<float>(weight), pointer<float>(bias),
                      pointer<float>(gamma), pointer<float>(beta), pointer<float>(mean), pointer<float>(var)});
  }
  return layers;
}

void bind_head(py::module_& m) {
  m.def(
      "head_create",
      [](const std::vector<LayerTuple>& tuples, size_t max_batch, Address rows, bool half, int loss, Address targets,
         Address class_weight, float smoothing, double lr, double momentum, double weight_decay, bool decoupled,
         double clip, Address schedule, uint64_t seed) {
        const std::vector<HeadLayer> layers = head_layers(tuples);
        return reinterpret_cast<Address>(head_create(
            {layers.data(), layers.size(), max_batch, pointer<const void>(rows), half ? DType::float16 : DType::float32,
             static_cast<Loss>(loss), pointer<const void>(targets), pointer<const float>(class_weight), smoothing, lr,
             momentum, weight_decay, decoupled, clip, pointer<const double>(schedule), seed}));
      },
      py::kw_only(), py::arg("layers"), py::arg("max_batch"), py::arg("rows"), py::arg("half"), py::arg("loss"),
      py::arg("targets"), py::arg("class_weight"), py::arg("smoothing"), py::arg("lr"), py::arg("momentum"),
      py::arg("weight_decay"), py::arg("decoupled"), py::arg("clip"), py::arg("schedule"), py::arg("seed"));
  m.def("head_destroy", [](Address engine) { head_destroy(pointer<HeadEngine>(engine)); });
  m.def(
      "head_momenta",
      [](Address engine, const std::vector<Address>& tensors, bool load) {
        std::vector<float*> places;
        for (const Address tensor : tensors) places.push_back(pointer<float>(tensor));
        head_momenta(pointer<HeadEngine>(engine), places.data(), load);
      },
      py::arg("engine"), py::kw_only(), py::arg("tensors"), py::arg("load"));
  m.def(
      "head_train",
      [](Address engine, Address order, size_t rows, size_t batch, uint32_t first_step, bool frozen_bn, Address losses,
         int threads) {
        check(head_train(pointer<HeadEngine>(engine),
                         {pointer<const int64_t>(order), rows, batch, first_step, frozen_bn, pointer<float>(losses)},
                         threads));
      },
      py::arg("engine"), py::kw_only(), py::arg("order"), py::arg("rows"), py::arg("batch"), py::arg("first_step"),
      py::arg("frozen_bn"), py::arg("losses"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "head_predict",
      [](const std::vector<LayerTuple>& tuples, Address rows, bool half, Address index, size_t count, Address out,
         int threads) {
        const std::vector<HeadLayer> layers = head_layers(tuples);
        check(head_predict(
            {layers.data(), layers.size(), pointer<const void>(rows), half ? DType::float16 : DType::float32,
             pointer<const int64_t>(index), count, pointer<float>(out)},
            threads));
      },
      py::kw_only(), py::arg("layers"), py::arg("rows"), py::arg("half"), py::arg("index"), py::arg("count"),
      py::arg("out"), py::arg("threads"), py::call_guard<py::gil_scoped_release>());
}

void bind_sgdr(py::module_& m) {
  m.def(
      "sgdr_step",
      [](Address tensors, size_t n_tensors, Address groups, size_t n_groups, int threads) {
        check(sgdr_step({pointer<const SgdrTensor>(tensors), n_tensors, pointer<const SgdrGroup>(groups), n_groups},
                        threads));
      },
      py::kw_only(), py::arg("tensors"), py::arg("n_tensors"), py::arg("groups"), py::arg("n_groups"),
      py::arg("threads"), py::call_guard<py::gil_scoped_release>());
  m.def(
      "schedule_values",
      [](Address schedule, int64_t first, size_t n, double own, Address factor, Address momentum) {
        schedule_values(pointer<const double>(schedule), first, n, own, pointer<double>(factor),
                        pointer<double>(momentum));
      },
      py::kw_only(), py::arg("schedule"), py::arg("first"), py::arg("n"), py::arg("own"), py::arg("factor"),
      py::arg("momentum"));
}

void bind_isa(py::module_& m) {
  m.def("isa", &isa);
  m.def("use_isa", [](const std::string& name) { check(use_isa(name.c_str())); });  // not None, as a char* could be
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  bind_gather_rows(m);
  bind_dropout_mask(m);
  bind_draw_windows(m);
  bind_head(m);
  bind_sgdr(m);
  bind_isa(m);
}
