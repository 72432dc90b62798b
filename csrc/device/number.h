// The number formats of activations and operands, and four of them at once.
#pragma once

#include "device/device.h"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#endif

namespace fastclf {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

FASTCLF_DEVICE float widen(float x) { return x; }
FASTCLF_DEVICE float widen(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
FASTCLF_DEVICE float widen(Half x) {
#if defined(__CUDACC__)
  return __half2float(__ushort_as_half(x.bits));
#else
  return emulate::half_to_float(x.bits);
#endif
}

// Rounds to the nearest, ties to even.
FASTCLF_DEVICE void narrow(float x, float* out) { *out = x; }
FASTCLF_DEVICE void narrow(float x, BFloat16* out) {
  const unsigned bits = __float_as_uint(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = static_cast<uint16_t>(nan ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

struct Quad {
  float v[4];
};

// Elements [0, count) of p, zeros behind them; `aligned`: all four, with p aligned to their size.
template <class T>
FASTCLF_DEVICE Quad load_quad(const T* p, size_t count, bool aligned) {
  Quad q = {};
  if (aligned) {
    if constexpr (sizeof(T) == 4) {
      const float4 x = load_vector<float4>(p);
      q = {{x.x, x.y, x.z, x.w}};
    } else {
      const uint2 x = load_vector<uint2>(p);
      const unsigned words[2] = {x.x, x.y};
      for (int i = 0; i < 4; ++i) q.v[i] = widen(T{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))});
    }
  } else {
    for (size_t i = 0; i < 4; ++i) {
      if (i < count) q.v[i] = widen(p[i]);
    }
  }
  return q;
}

template <class T>
FASTCLF_DEVICE void store_quad(T* p, const Quad& q, size_t count, bool aligned) {
  if (aligned) {
    if constexpr (sizeof(T) == 4) {
      store_vector(p, float4{q.v[0], q.v[1], q.v[2], q.v[3]});
    } else {
      T x[4];
      for (int i = 0; i < 4; ++i) narrow(q.v[i], &x[i]);
      store_vector(p, uint2{static_cast<unsigned>(x[0].bits) | static_cast<unsigned>(x[1].bits) << 16,
                            static_cast<unsigned>(x[2].bits) | static_cast<unsigned>(x[3].bits) << 16});
    }
  } else {
    for (size_t i = 0; i < 4; ++i) {
      if (i < count) narrow(q.v[i], p + i);
    }
  }
}

}  // namespace fastclf
