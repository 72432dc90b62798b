// out[r, :] = float32(src[index[r], :]): one block per row, threads along the row.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

namespace fastclf {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }

template <class T>
__global__ void gather_rows_kernel(const T* __restrict__ src, const int64_t* __restrict__ index,
                                   float* __restrict__ out, size_t width) {
  const T* row = src + static_cast<size_t>(index[blockIdx.x]) * width;
  float* dst = out + blockIdx.x * width;
  for (size_t i = threadIdx.x; i < width; i += blockDim.x) dst[i] = widen(row[i]);
}

}  // namespace fastclf
