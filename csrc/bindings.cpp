// The processor's module. The GPU's: cuda/bindings.cpp.
#include <tuple>
#include <vector>

#include "bind.h"
#include "cpu/launchers.h"

namespace py = pybind11;
using namespace fastclf;
using namespace fastclf::cpu;

namespace {

using Address = std::uintptr_t;

void bind_rows(py::module_& m) {
  bind(m, "gather_rows", gather_rows, FIELD(GatherRows, src), FIELD(GatherRows, dtype), FIELD(GatherRows, index),
       FIELD(GatherRows, out), FIELD(GatherRows, rows), FIELD(GatherRows, width));
  bind(m, "dropout_mask", dropout_mask, FIELD(DropoutMask, seed), FIELD(DropoutMask, step), FIELD(DropoutMask, layer),
       FIELD(DropoutMask, p), FIELD(DropoutMask, out), FIELD(DropoutMask, rows), FIELD(DropoutMask, cols));
}

void bind_images(py::module_& m) {
  bind(m, "crop_resize", crop_resize, FIELD(CropResize, src), FIELD(CropResize, shape), FIELD(CropResize, bytes),
       FIELD(CropResize, crop), FIELD(CropResize, size), FIELD(CropResize, matrix), FIELD(CropResize, pixel_ops),
       FIELD(CropResize, numbers), FIELD(CropResize, n), FIELD(CropResize, n_ops), FIELD(CropResize, width),
       FIELD(CropResize, sz), FIELD(CropResize, top), FIELD(CropResize, mean), FIELD(CropResize, std),
       FIELD(CropResize, out));
}

void bind_head(py::module_& m) {
  m.def("head_create", [](const py::kwargs& given) {
    return reinterpret_cast<Address>(head_create(from_fields<HeadCreate>(
        given, FIELD(HeadCreate, layers), FIELD(HeadCreate, n_layers), FIELD(HeadCreate, max_batch),
        FIELD(HeadCreate, rows), FIELD(HeadCreate, dtype), FIELD(HeadCreate, loss), FIELD(HeadCreate, targets),
        FIELD(HeadCreate, class_weight), FIELD(HeadCreate, smoothing), FIELD(HeadCreate, group),
        FIELD(HeadCreate, clip), FIELD(HeadCreate, seed))));
  });
  m.def("head_destroy", [](Address engine) { head_destroy(reinterpret_cast<HeadEngine*>(engine)); });
  m.def(
      "head_momenta",
      [](Address engine, const std::vector<Address>& tensors, bool load) {
        std::vector<float*> places;
        for (const Address tensor : tensors) places.push_back(reinterpret_cast<float*>(tensor));
        head_momenta(reinterpret_cast<HeadEngine*>(engine), places.data(), load);
      },
      py::arg("engine"), py::kw_only(), py::arg("tensors"), py::arg("load"));
  bind(m, "head_train", head_train, FIELD(HeadTrain, engines), FIELD(HeadTrain, n_engines), FIELD(HeadTrain, order),
       FIELD(HeadTrain, sources), FIELD(HeadTrain, rows), FIELD(HeadTrain, batch), FIELD(HeadTrain, first_step),
       FIELD(HeadTrain, frozen_bn), FIELD(HeadTrain, losses));
  bind(m, "head_predict", head_predict, FIELD(HeadPredict, layers), FIELD(HeadPredict, n_layers),
       FIELD(HeadPredict, rows), FIELD(HeadPredict, dtype), FIELD(HeadPredict, index), FIELD(HeadPredict, count),
       FIELD(HeadPredict, out));
}

void bind_sgd(py::module_& m) {
  bind(m, "sgd_step", sgd_step, FIELD(SgdStep, tensors), FIELD(SgdStep, n_tensors), FIELD(SgdStep, groups),
       FIELD(SgdStep, steps), FIELD(SgdStep, n_groups));
  m.def("rate", [](Address address, int64_t step) {
    const auto& schedule = *reinterpret_cast<const Schedule*>(address);
    return std::tuple(schedule_factor(schedule, step), schedule_momentum(schedule, step));
  });
}

void bind_isa(py::module_& m) {
  m.def("isa", &isa);
  m.def("use_isa", [](const std::string& name) { check(use_isa(name.c_str())); });  // not None, as a char* could be
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  bind_rows(m);
  bind_images(m);
  bind_head(m);
  bind_sgd(m);
  bind_isa(m);
}
