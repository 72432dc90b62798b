// The widest vector of the instruction set this file is compiled for, in the compiler's vector extension: ordinary
// operators work lane by lane, so one source serves SSE2, AVX2, AVX-512 and processors that are not x86. Intrinsics
// appear only where the extension has no word for the instruction ("maskz" forms with all lanes for AVX-512: GCC 12
// takes the plain ones for reads of an uninitialised variable).
//
// Included only by vector_code.cpp. Everything is in the namespace of the instruction set, and nothing here includes a
// standard header with inline functions: the linker would keep one copy of those, perhaps the one compiled for AVX-512.
#pragma once

#include <cstddef>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastclf::cpu::FASTCLF_ISA {

#if defined(__AVX512F__)
constexpr size_t kLanes = 16;
#elif defined(__AVX2__)
constexpr size_t kLanes = 8;
#else
constexpr size_t kLanes = 4;
#endif

constexpr size_t kLine = 16;  // floats in a line of the cache

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint64_t U64 __attribute__((vector_size(kLanes * 4)));
typedef int64_t I64 __attribute__((vector_size(kLanes * 4)));

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
// Writes past the caches, which would first read what is overwritten; p is aligned like a vector. Fill whole lines, and
// call _mm_sfence before another thread reads.
inline void stream(float* p, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#elif defined(__x86_64__)
  _mm_stream_ps(p, v);
#else
  store(p, v);
#endif
}
inline Vec splat(float x) { return x - Vec{}; }

// The sum of the lanes, in a fixed order.
inline float add_lanes(Vec v) {
  float sum = 0;
  for (size_t i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// Bit i: lane i is > 0.
inline uint64_t positive_lanes(Vec v) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ)));
#elif defined(__x86_64__)
  return static_cast<unsigned>(_mm_movemask_ps(_mm_cmpgt_ps(v, _mm_setzero_ps())));
#else
  uint64_t bits = 0;
  for (size_t i = 0; i < kLanes; ++i) bits |= uint64_t{v[i] > 0} << i;
  return bits;
#endif
}

// v in the lanes whose bit is set, 0 in the others.
inline Vec where(uint64_t bits, Vec v) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), v);
#else
  typedef int32_t Lanes __attribute__((vector_size(kLanes * 4)));
  Lanes bit;
  for (size_t i = 0; i < kLanes; ++i) bit[i] = 1 << i;
  const Lanes chosen = ((static_cast<int32_t>(bits) - Lanes{}) & bit) == bit;
  return reinterpret_cast<Vec>(reinterpret_cast<Lanes>(v) & chosen);
#endif
}

// The full 64-bit products of the low halves of the lanes with m.
inline U64 multiply_low(U64 a, uint32_t m) {
#if defined(__AVX512F__)
  return reinterpret_cast<U64>(_mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), _mm512_set1_epi64(m)));
#elif defined(__AVX2__)
  return reinterpret_cast<U64>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(m)));
#elif defined(__x86_64__)
  return reinterpret_cast<U64>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(m)));
#else
  return (a & 0xffffffffu) * uint64_t{m};
#endif
}

// One IEEE half as a float, exactly; subnormals, infinities and NaN included.
inline float widen_one(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, body = half & 0x7fffu;
  float magnitude;
  if (body >= 0x7c00u) {  // infinity or NaN
    const uint32_t bits = 0x7f800000u | (body << 13);
    __builtin_memcpy(&magnitude, &bits, 4);
  } else {  // the exponent's bias moves from 15 to 127; exact, and right for subnormals
    const uint32_t bits = body << 13;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude *= 0x1p112f;
  }
  uint32_t bits;
  __builtin_memcpy(&bits, &magnitude, 4);
  bits |= sign;
  __builtin_memcpy(&magnitude, &bits, 4);
  return magnitude;
}

// kLanes halves as floats.
inline Vec load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v;
  for (size_t i = 0; i < kLanes; ++i) v[i] = widen_one(p[i]);
  return v;
#endif
}

}  // namespace fastclf::cpu::FASTCLF_ISA
