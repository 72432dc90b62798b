// What the launchers of both native modules take: plain pointers with their [shape], and sizes.
//
// The launchers themselves: cpu/launchers.h (namespace fastclf::cpu), cuda/launchers.h (fastclf::cuda). No torch and no
// pybind11 below this line. Callers (the bindings, the C++ test drivers) guarantee what the comments say: the checks of
// dtype, shape, contiguity and range live in one Python function per operation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/schedule.h"

namespace fastclf {

// What a launcher returns: no message means that it worked. Messages are static strings.
struct [[nodiscard]] Status {
  const char* error = nullptr;
};

enum class DType : int { float16 = 0, float32 = 1, bfloat16 = 2 };

enum class Loss : int { nll = 0, bce = 1 };

// A tensor of an SGD step, or a part of one: all in the same order of memory.
struct SgdTensor {
  float* param;       // [n]
  const float* grad;  // [n]
  float* velocity;    // [n]
  float* average;     // [n], a running average of the parameter, or null
  uint64_t n, group;
};

}  // namespace fastclf
