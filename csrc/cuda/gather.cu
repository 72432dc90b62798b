#include "api.h"
#include "cuda/gather.cuh"

namespace fastclf {

Status gather_rows(const GatherRows& op, int /*threads*/, void* stream) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    return {
        "gather_rows: the CUDA module needs an NVIDIA GPU with a driver for CUDA 13; none was found. Keep the rows on "
        "the CPU."};
  }
  if (op.rows == 0) return {};
  constexpr unsigned kThreads = 256;
  const auto launch = [&](auto* src) {
    gather_rows_kernel<<<static_cast<unsigned>(op.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        src, op.index, op.out, op.width);
  };
  if (op.dtype == DType::float16) {
    launch(static_cast<const __half*>(op.src));
  } else {
    launch(static_cast<const float*>(op.src));
  }
  const cudaError_t e = cudaGetLastError();
  return {e == cudaSuccess ? nullptr : cudaGetErrorString(e)};
}

}  // namespace fastclf
