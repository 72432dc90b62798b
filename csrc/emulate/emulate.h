// CUDA keywords and built-ins, defined for a host compiler: a kernel body becomes ordinary C++, each CUDA thread a
// fiber.
//
// Shows: indexing, barriers, arithmetic, alignment of vector accesses, shared memory that was never written (its bytes
// begin as 0xff), threads that do not all come to a barrier. AddressSanitizer sees every array's bounds, shared ones
// too; ThreadSanitizer takes each CUDA thread for a thread, and knows no order between them but that of barriers and
// atomics. Launches run threads and blocks in rising and falling order by turns. Does not show: speed, the GPU's memory
// order, fast-math. Block sizes must be multiples of 32, and collectives full-mask.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct uint2 {
  unsigned x, y;
};
struct float4 {
  float x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

namespace fastclf::emulate {

struct Launch {
  dim3 grid;
  unsigned threads;  // of a block
  size_t dynamic_bytes = 0;
  bool cooperative = false;  // all blocks at once, so that they can meet at grid_barrier()
};

// Runs the body once for every thread of the grid.
void run(const Launch& launch, const std::function<void()>& body);

struct Position {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern const Position* current;  // the running thread's

void block_barrier();
void grid_barrier();
// Every lane of a warp gives a value and gets the one that lane `from` has given.
uint64_t exchange(unsigned mask, uint64_t value, unsigned from);
// The block's shared array that belongs to this place in the source; and its dynamic one.
void* shared_array(const void* place, size_t bytes);
void* dynamic_shared();
// Ends the process unless the address is a multiple of the size.
void check_aligned(const void* address, size_t size);

template <class T>
T shuffle(unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(mask, bits, from);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

float half_to_float(uint16_t half);

}  // namespace fastclf::emulate

#define threadIdx (::fastclf::emulate::current->thread)
#define blockIdx (::fastclf::emulate::current->block)
#define blockDim (::fastclf::emulate::current->block_size)
#define gridDim (::fastclf::emulate::current->grid_size)

inline void __syncthreads() { fastclf::emulate::block_barrier(); }
inline void __threadfence() {}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned lanes) {
  return fastclf::emulate::shuffle(mask, value, threadIdx.x % 32 ^ lanes);
}
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned lane) {
  return fastclf::emulate::shuffle(mask, value, lane);
}

inline float __uint_as_float(unsigned x) { return fastclf::emulate::bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return fastclf::emulate::bits_as<unsigned>(x); }
