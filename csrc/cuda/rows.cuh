// Reading the rows of a batch, and the dropout laid over them.
#pragma once

#include "cuda/reduce.cuh"
#include "device/number.h"
#include "device/philox.h"

namespace fastclf::cuda {

template <class T>
FASTCLF_DEVICE const T* row_of(const BatchRows& x, size_t b) {
  const size_t row = x.order ? static_cast<size_t>(x.order[x.step_counter->batch * x.stride + b]) : b;
  return static_cast<const T*>(x.src) + row * x.cols;
}

// Calls f with a value of the rows' type, float16 or float32.
template <class F>
Status with_dtype(DType dtype, F f) {
  if (dtype == DType::float16) return f(Half{});
  return f(float{});
}

// A layer's dropout as kernels take it.
struct DropoutSampler {
  uint64_t seed, drop_below;
  uint32_t layer;
  float scale;
};

inline DropoutSampler sampler_of(const Dropout& d) {
  return {d.seed, drop_below(d.p), d.layer, static_cast<float>(1 / (1 - d.p))};
}

// Four bits: element 4 * quad + i of the row is kept.
FASTCLF_DEVICE unsigned keep_quad(const DropoutSampler& sampler, uint32_t step, uint32_t row, uint32_t quad) {
  if (sampler.drop_below == 0) return 15;
  uint32_t x[4] = {quad, row, sampler.layer, step};
  uint32_t k0 = static_cast<uint32_t>(sampler.seed), k1 = static_cast<uint32_t>(sampler.seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round, k0 += kPhiloxW0, k1 += kPhiloxW1) {
    const uint64_t p0 = uint64_t{x[0]} * kPhiloxM0, p1 = uint64_t{x[2]} * kPhiloxM1;
    x[0] = static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0;
    x[1] = static_cast<uint32_t>(p1);
    x[2] = static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1;
    x[3] = static_cast<uint32_t>(p0);
  }
  unsigned keep = 0;
  for (unsigned i = 0; i < 4; ++i) keep |= static_cast<unsigned>(x[i] >= sampler.drop_below) << i;
  return keep;
}

}  // namespace fastclf::cuda
