// Work on the columns of a matrix, each column's rows all in one block: what depends on a whole column, such as
// BatchNorm's statistics, is then known in the kernel that needs it, and no block waits for another.
//
// A block takes a strip of 8 columns. A thread has four of them and every n-th row; one row each for a batch of 64,
// where a step's time is the latency of its kernels.
#pragma once

#include "cuda/reduce.cuh"
#include "device/number.h"

namespace fastclf::cuda {

constexpr unsigned kStripQuads = 2, kStripColumns = 4 * kStripQuads, kStripWarps = 16, kStripThreads = 32 * kStripWarps;

inline Grid strip_grid(size_t rows, size_t cols) {
  const unsigned warps = blocks_for(rows * kStripQuads, 32);
  return {dim3(blocks_for(cols, kStripColumns)), 32 * (warps < kStripWarps ? warps : kStripWarps)};
}

// What of the matrix is this thread's.
struct Strip {
  size_t column, count;  // the first column, and how many there are from it on: may be none
  unsigned row, step;    // the first row, and from one to the next
  bool aligned;          // all four can be read at once

  template <class T>
  FASTCLF_DEVICE Quad load(const T* of_row) const {
    return load_quad(of_row + column, count, aligned);
  }
  template <class T>
  FASTCLF_DEVICE void store(T* of_row, const Quad& v) const {
    store_quad(of_row + column, v, count, aligned);
  }
};

// `aligned`: rows of 4 n columns, each aligned to the size of four.
FASTCLF_DEVICE Strip strip_of(size_t cols, bool aligned) {
  const size_t column = size_t{blockIdx.x} * kStripColumns + threadIdx.x % kStripQuads * 4;
  const size_t count = column < cols ? cols - column : 0;
  return {column, count, threadIdx.x / kStripQuads, blockDim.x / kStripQuads, aligned && count > 0};
}

// The sums over all rows of the strip, for every thread those of its columns.
FASTCLF_DEVICE Quad strip_sum(Quad v) {
  FASTCLF_SHARED(float, part, kStripWarps* kStripColumns);
  for (unsigned m = 16; m >= kStripQuads; m /= 2) {
    for (int i = 0; i < 4; ++i) v.v[i] += __shfl_xor_sync(kFullMask, v.v[i], m);
  }
  __syncthreads();  // the sums before this one have been read
  if (lane() < kStripQuads) {
    for (int i = 0; i < 4; ++i) part[warp() * kStripColumns + lane() * 4 + i] = v.v[i];
  }
  __syncthreads();
  Quad sum = {};
  for (unsigned w = 0; w < blockDim.x / 32; ++w) {
    for (int i = 0; i < 4; ++i) sum.v[i] += part[w * kStripColumns + threadIdx.x % kStripQuads * 4 + i];
  }
  return sum;
}

}  // namespace fastclf::cuda
