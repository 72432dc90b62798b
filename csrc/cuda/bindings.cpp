// Integers to pointers, status to exception, GIL released; nothing else. The same file serves the GPU's module and its
// emulation. A launcher's arguments are passed by the names of its fields, all of them, and `stream`.
#include <pybind11/pybind11.h>

#include <type_traits>

#include "cuda/launchers.h"

namespace py = pybind11;
using namespace fastclf;

namespace {

void check(Status status) {
  if (!status.error) return;
  const py::object error = py::module_::import("fastclf.errors").attr("BackendError");
  PyErr_SetString(error.ptr(), status.error);
  throw py::error_already_set();
}

template <class T>
T value_of(const py::handle& given) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(given.cast<std::uintptr_t>());
  } else if constexpr (std::is_enum_v<T>) {
    return static_cast<T>(given.cast<int>());
  } else {
    return given.cast<T>();
  }
}

py::handle argument(const py::kwargs& given, const char* name) {
  if (!given.contains(name)) throw py::type_error(std::string("missing keyword argument: ") + name);
  return given[name];
}

template <class Part, class T>
struct Field {
  const char* name;
  T Part::* member;
};
template <class Part, class T>
Field(const char*, T Part::*) -> Field<Part, T>;

template <class Op, class... Fields>
void bind(py::module_& m, const char* name, Status (*run)(const Op&, void*), Fields... fields) {
  m.def(name, [=](const py::kwargs& given) {
    if (given.size() != sizeof...(fields) + 1) throw py::type_error(std::string(name) + ": unexpected arguments");
    Op op;
    ((op.*fields.member = value_of<std::remove_reference_t<decltype(op.*fields.member)>>(argument(given, fields.name))),
     ...);
    void* stream = value_of<void*>(argument(given, "stream"));
    Status status;
    {
      const py::gil_scoped_release release;
      status = run(op, stream);
    }
    check(status);
  });
}

Status gather(const GatherRows& op, void* stream) { return gather_rows(op, 1, stream); }

#define FIELD(Op, name) \
  Field { #name, &Op::name }
#define ROWS(Op)                                                                                            \
  FIELD(Op, src), FIELD(Op, dtype), FIELD(Op, order), FIELD(Op, clock), FIELD(Op, stride), FIELD(Op, rows), \
      FIELD(Op, cols)
#define STATISTICS(Op)                                                                                    \
  FIELD(Op, mean), FIELD(Op, rstd), FIELD(Op, running_mean), FIELD(Op, running_var), FIELD(Op, momentum), \
      FIELD(Op, eps), FIELD(Op, partial), FIELD(Op, ticket)
#define DROPOUT(Op) FIELD(Op, seed), FIELD(Op, layer), FIELD(Op, p)

void bind_forward(py::module_& m) {
  bind(m, "gather_rows", gather, FIELD(GatherRows, src), FIELD(GatherRows, dtype), FIELD(GatherRows, index),
       FIELD(GatherRows, out), FIELD(GatherRows, rows), FIELD(GatherRows, width));
  bind(m, "batch_moments", batch_moments, ROWS(BatchMoments), STATISTICS(BatchMoments));
  bind(m, "relu_moments", relu_moments, STATISTICS(ReluMoments), FIELD(ReluMoments, z), FIELD(ReluMoments, bias),
       FIELD(ReluMoments, rows), FIELD(ReluMoments, cols));
  bind(m, "normalise", normalise, ROWS(Normalise), DROPOUT(Normalise), FIELD(Normalise, mean), FIELD(Normalise, rstd),
       FIELD(Normalise, gamma), FIELD(Normalise, beta), FIELD(Normalise, out), FIELD(Normalise, out_dtype));
  bind(m, "fold", fold, FIELD(Fold, weight), FIELD(Fold, bias), FIELD(Fold, gamma), FIELD(Fold, beta),
       FIELD(Fold, mean), FIELD(Fold, var), FIELD(Fold, eps), FIELD(Fold, n_out), FIELD(Fold, n_in),
       FIELD(Fold, out_weight), FIELD(Fold, out_bias));
  bind(m, "add_bias", add_bias, FIELD(AddBias, z), FIELD(AddBias, bias), FIELD(AddBias, rows), FIELD(AddBias, cols),
       FIELD(AddBias, relu));
}

void bind_backward(py::module_& m) {
  bind(m, "loss_gradient", loss_gradient, FIELD(LossGradient, loss), FIELD(LossGradient, z), FIELD(LossGradient, bias),
       FIELD(LossGradient, targets), FIELD(LossGradient, order), FIELD(LossGradient, clock),
       FIELD(LossGradient, stride), FIELD(LossGradient, rows), FIELD(LossGradient, classes),
       FIELD(LossGradient, weight), FIELD(LossGradient, weight_sum), FIELD(LossGradient, smoothing),
       FIELD(LossGradient, row_loss), FIELD(LossGradient, losses), FIELD(LossGradient, ticket),
       FIELD(LossGradient, copy));
  bind(m, "column_sums", column_sums, FIELD(ColumnSums, x), FIELD(ColumnSums, rows), FIELD(ColumnSums, cols),
       FIELD(ColumnSums, out), FIELD(ColumnSums, partial), FIELD(ColumnSums, ticket));
  bind(m, "affine_gradient", affine_gradient, ROWS(AffineGradient), DROPOUT(AffineGradient), FIELD(AffineGradient, g),
       FIELD(AffineGradient, write), FIELD(AffineGradient, mean), FIELD(AffineGradient, rstd),
       FIELD(AffineGradient, dgamma), FIELD(AffineGradient, dbeta), FIELD(AffineGradient, partial),
       FIELD(AffineGradient, ticket));
  bind(m, "input_gradient", input_gradient, FIELD(InputGradient, g), FIELD(InputGradient, h),
       FIELD(InputGradient, rows), FIELD(InputGradient, cols), FIELD(InputGradient, mean), FIELD(InputGradient, rstd),
       FIELD(InputGradient, gamma), FIELD(InputGradient, dgamma), FIELD(InputGradient, dbeta),
       FIELD(InputGradient, frozen), FIELD(InputGradient, dbias), FIELD(InputGradient, copy),
       FIELD(InputGradient, partial), FIELD(InputGradient, ticket));
}

void bind_update(py::module_& m) {
  bind(m, "clip_factor", clip_factor, FIELD(ClipFactor, tensors), FIELD(ClipFactor, n_tensors), FIELD(ClipFactor, clip),
       FIELD(ClipFactor, partial), FIELD(ClipFactor, ticket), FIELD(ClipFactor, factor));
  bind(m, "sgdr_update", sgdr_update, FIELD(SgdrUpdate, tensors), FIELD(SgdrUpdate, n_tensors),
       FIELD(SgdrUpdate, groups), FIELD(SgdrUpdate, n_groups), FIELD(SgdrUpdate, scale), FIELD(SgdrUpdate, clock),
       FIELD(SgdrUpdate, ticket));
}

}  // namespace

PYBIND11_MODULE(FASTCLF_MODULE, m) {
  bind_forward(m);
  bind_backward(m);
  bind_update(m);
}
