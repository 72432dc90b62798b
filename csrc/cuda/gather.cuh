// out[r, :] = float32(src[index[r], :]): one block per row, threads along the row.
#pragma once

#include "device/number.h"

namespace fastclf {

template <class T>
__global__ void gather_rows_kernel(const T* src, const int64_t* index, float* out, size_t width) {
  const T* row = src + static_cast<size_t>(index[blockIdx.x]) * width;
  float* to = out + blockIdx.x * width;
  for (size_t i = threadIdx.x; i < width; i += blockDim.x) to[i] = widen(row[i]);
}

}  // namespace fastclf
