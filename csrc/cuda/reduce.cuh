// Sums over the threads of a warp or a block, and over blocks: each in a fixed order.
#pragma once

#include "cuda/launch.h"
#include "cuda/launchers.h"

namespace fastclf::cuda {

constexpr unsigned kFullMask = 0xffffffffu;

FASTCLF_DEVICE unsigned lane() { return threadIdx.x % 32; }
FASTCLF_DEVICE unsigned warp() { return threadIdx.x / 32; }

FASTCLF_DEVICE float warp_sum(float v) {
  for (unsigned m = 16; m > 0; m /= 2) v += __shfl_xor_sync(kFullMask, v, m);
  return v;
}
FASTCLF_DEVICE double warp_sum(double v) {
  for (unsigned m = 16; m > 0; m /= 2) v += __shfl_xor_sync(kFullMask, v, m);
  return v;
}
FASTCLF_DEVICE float warp_max(float v) {
  for (unsigned m = 16; m > 0; m /= 2) v = fmaxf(v, __shfl_xor_sync(kFullMask, v, m));
  return v;
}

template <unsigned kWarps, class T>
FASTCLF_DEVICE T block_sum(T v) {
  FASTCLF_SHARED(T, part, kWarps);
  v = warp_sum(v);
  __syncthreads();  // the sum before this one has been read
  if (lane() == 0) part[warp()] = v;
  __syncthreads();
  T sum = 0;
  for (unsigned i = 0; i < kWarps; ++i) sum += part[i];
  return sum;
}

// Whether this block is the last of `blocks` to come here; it sees what the others have written. All threads call it.
FASTCLF_DEVICE bool last_block(unsigned* block_counter, unsigned blocks) {
  FASTCLF_SHARED(unsigned, before, 1);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    before[0] = atomic_add(block_counter, 1u);
    if (before[0] + 1 == blocks) *block_counter = 0;
    __threadfence();
  }
  __syncthreads();
  return before[0] + 1 == blocks;
}

}  // namespace fastclf::cuda
