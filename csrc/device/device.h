// What a kernel body sees of its compiler: nvcc, or g++ with the emulation.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#define FASTCLF_DEVICE __device__ __forceinline__
#define FASTCLF_SHARED(type, name, count) __shared__ type name[count]
#define FASTCLF_DYNAMIC_SHARED(type, name)                      \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* const name = reinterpret_cast<type*>(name##_bytes)

namespace fastclf {

FASTCLF_DEVICE unsigned atomic_add(unsigned* at, unsigned x) { return atomicAdd(at, x); }

// One access of sizeof(V) bytes, which must divide the address, to global memory.
template <class V>
FASTCLF_DEVICE V load_vector(const void* at) {
  __builtin_assume(__isGlobal(at));
  return *static_cast<const V*>(at);
}
template <class V>
FASTCLF_DEVICE void store_vector(void* at, V v) {
  __builtin_assume(__isGlobal(at));
  *static_cast<V*>(at) = v;
}

}  // namespace fastclf

#else

#include "emulate/emulate.h"

#define FASTCLF_DEVICE inline
#define FASTCLF_SHARED(type, name, count) \
  static char name##_place;               \
  type* const name = static_cast<type*>(::fastclf::emulate::shared_array(&name##_place, sizeof(type) * (count)))
#define FASTCLF_DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(::fastclf::emulate::dynamic_shared())

namespace fastclf {

inline unsigned atomic_add(unsigned* at, unsigned x) { return __atomic_fetch_add(at, x, __ATOMIC_ACQ_REL); }

template <class V>
V load_vector(const void* at) {
  emulate::check_aligned(at, sizeof(V));
  V v;
  std::memcpy(&v, at, sizeof v);
  return v;
}
template <class V>
void store_vector(void* at, V v) {
  emulate::check_aligned(at, sizeof(V));
  std::memcpy(at, &v, sizeof v);
}

}  // namespace fastclf

#endif
