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

// What is done to the values of a crop, in order (fastclf.ops.crop_resize.PixelOp), each with its numbers.
enum class PixelOp : int64_t { brightness_contrast = 0 };  // b, c: clip((x - mean) * c + mean + b * top, 0, top)

// Images as a model takes them: each cropped and resized, turned, changed by pixel operations, and normalised.
struct CropResize {
  const uint64_t* src;   // [n] addresses of images [height, width, 3], uint8 or float
  const int64_t* shape;  // [n, 2] height and width, each >= 1
  bool bytes;            // uint8
  const float* crop;     // [n, 4] top, left, bottom, right, in the image's own pixels
  const int64_t* size;   // [n, 2] rows and columns that the crop is resized to, each >= 1; [sz, sz] without a matrix
  const float* matrix;   // [n, 2, 3] from the result to the resized crop, over (x, y); null: they are the same
  const int64_t* pixel_ops;  // [n_ops] PixelOp
  const float* numbers;      // [n, n_ops, width] that each takes, zeros behind them
  size_t n, n_ops, width, sz;
  float top;  // full white
  float mean[3], std[3];
  float* out;  // [n, 3, sz, sz]
};

}  // namespace fastclf
