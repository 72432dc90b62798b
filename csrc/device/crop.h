// How images are cropped and resized, on the processor and on a GPU: weights, border, brightness and contrast.
//
// Functions are static: vector code, which includes this, is compiled once per instruction set, and the linker would
// keep one copy of an inline function.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/both.h"

namespace fastclf {

// One axis: n values are made of a source's between two positions. A value is the mean under a triangle as wide as a
// step of the result, or of the source where that is magnified; the outermost value goes on outside.
struct CropAxis {
  double low, step, reach;
  int64_t last;  // of the source's values
  int64_t span;  // values under a triangle
  int64_t taps;  // of these, those that the source can have
};

// What one value is made of: the sum over k < count of weight[k] * source[first + k].
struct CropTaps {
  uint32_t first, count;
};

FASTCLF_BOTH static inline int64_t rounded_up(double x) {
  const auto whole = static_cast<int64_t>(x);
  return whole + (static_cast<double>(whole) < x);
}

FASTCLF_BOTH static inline int64_t clamped(int64_t i, int64_t low, int64_t high) {
  return i < low ? low : i > high ? high : i;
}

FASTCLF_BOTH static inline CropAxis crop_axis(double low, double high, size_t n, size_t source) {
  const double step = (high - low) / static_cast<double>(n), reach = step > 1 ? step : 1;
  const auto last = static_cast<int64_t>(source) - 1, span = rounded_up(2 * reach);
  return {low, step, reach, last, span, last + 1 < span ? last + 1 : span};
}

// Writes weight[k], k < axis.taps, of value i; those from count on are zero.
FASTCLF_BOTH static inline CropTaps crop_taps(const CropAxis& axis, size_t i, float* weight) {
  const double slope = 1 / axis.reach, middle = axis.low + (static_cast<double>(i) + 0.5) * axis.step;
  const int64_t from = rounded_up(middle - axis.reach - 0.5), last = axis.last;
  const int64_t start = clamped(from, 0, last + 1 - axis.taps);
  const bool inside = from >= 0 && from + axis.span <= last + 1;
  for (int64_t k = 0; k < axis.taps; ++k) weight[k] = 0;
  int64_t count = 1;
  float total = 0;
  for (int64_t k = 0; k < axis.span; ++k) {
    const double distance = static_cast<double>(from + k) + 0.5 - middle;
    const auto share = static_cast<float>(1 - (distance < 0 ? -distance : distance) * slope);
    if (share <= 0) continue;
    const int64_t tap = inside ? k : clamped(clamped(from + k, 0, last) - start, 0, axis.taps - 1);
    weight[tap] += share;
    total += share;
    count = tap + 1 > count ? tap + 1 : count;
  }
  const float scale = 1 / total;
  for (int64_t k = 0; k < count; ++k) weight[k] *= scale;
  return {static_cast<uint32_t>(start), static_cast<uint32_t>(count)};
}

// Position -1 is 0, -2 is 1: the border is mirrored, the outermost pixel included; farther out the last one goes on.
FASTCLF_BOTH static inline int32_t mirrored(int32_t i, int32_t n) {
  if (i < 0) i = -1 - i;
  if (i >= n) i = 2 * n - 1 - i;
  return i < 0 ? 0 : i >= n ? n - 1 : i;
}

// What normalises a value of 0..top: value * gain + offset.
struct CropScale {
  float gain[3], offset[3];
};

FASTCLF_BOTH static inline CropScale crop_scale(const float* mean, const float* std, float top) {
  CropScale scale = {};
  for (int c = 0; c < 3; ++c) {
    scale.gain[c] = 1 / (std[c] * top);
    scale.offset[c] = -mean[c] / std[c];
  }
  return scale;
}

// What is added to contrast * value, before it is clipped to 0..top; `sum` is that of the crop's n values.
FASTCLF_BOTH static inline float contrast_shift(double sum, size_t n, float brightness, float contrast, float top) {
  const auto mean = static_cast<float>(sum / static_cast<double>(n));
  return mean * (1 - contrast) + brightness * top;
}

}  // namespace fastclf
