// Integers to pointers, status to exception, GIL released; nothing else. Serves all modules (bindings.cpp,
// cuda/bindings.cpp). A launcher's arguments are passed by the names of its struct's fields, all of them, and by that
// of its last one: `threads` or `stream`.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <type_traits>

#include "api.h"

namespace fastclf {

inline void check(Status status) {
  if (!status.error) return;
  const pybind11::object error = pybind11::module_::import("fastclf.errors").attr("BackendError");
  PyErr_SetString(error.ptr(), status.error);
  throw pybind11::error_already_set();
}

template <class T>
void assign(T& field, const pybind11::handle& given) {
  if constexpr (std::is_pointer_v<T>) {
    field = reinterpret_cast<T>(given.cast<std::uintptr_t>());
  } else if constexpr (std::is_enum_v<T>) {
    field = static_cast<T>(given.cast<int>());
  } else if constexpr (std::is_array_v<T>) {
    std::ranges::copy(given.cast<std::array<std::remove_extent_t<T>, std::extent_v<T>>>(), field);
  } else {
    field = given.cast<T>();
  }
}

inline pybind11::handle argument(const pybind11::kwargs& given, const char* name) {
  PyObject* found = PyDict_GetItemString(given.ptr(), name);  // one look-up: SGDR makes its steps through here
  if (!found) throw pybind11::type_error(std::string("missing keyword argument: ") + name);
  return found;
}

template <class Part, class T>
struct Field {
  const char* name;
  T Part::* member;
};
template <class Part, class T>
Field(const char*, T Part::*) -> Field<Part, T>;

#define FIELD(Op, name) \
  ::fastclf::Field { #name, &Op::name }

// An operation from its keyword arguments.
template <class Op, class... Fields>
Op from_fields(const pybind11::kwargs& given, Fields... fields) {
  Op op = {};
  (assign(op.*fields.member, argument(given, fields.name)), ...);
  return op;
}

template <class Op, class Last, class... Fields>
void bind(pybind11::module_& m, const char* name, Status (*run)(const Op&, Last), Fields... fields) {
  m.def(name, [=](const pybind11::kwargs& given) {
    if (given.size() != sizeof...(fields) + 1) throw pybind11::type_error(std::string(name) + ": unexpected arguments");
    const Op op = from_fields<Op>(given, fields...);
    Last last;
    assign(last, argument(given, std::is_pointer_v<Last> ? "stream" : "threads"));
    Status status;
    {
      const pybind11::gil_scoped_release release;
      status = run(op, last);
    }
    check(status);
  });
}

}  // namespace fastclf
