// Starts a kernel on a stream, on the device or under emulation.
#pragma once

#include "api.h"
#include "device/device.h"

namespace fastclf::cuda {

struct Grid {
  dim3 blocks;
  unsigned threads;
  size_t dynamic_bytes = 0;
};

// Blocks that cover n items of `each`; every launcher returns before this where there is nothing to do.
inline unsigned blocks_for(size_t n, size_t each) { return static_cast<unsigned>((n + each - 1) / each); }

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

#if defined(__CUDACC__)

inline Status status_of(cudaError_t e) {
  if (e == cudaSuccess) return {};
  if (e == cudaErrorNoDevice || e == cudaErrorInsufficientDriver || e == cudaErrorInitializationError) {
    return {
        "the CUDA module needs an NVIDIA GPU with a driver for CUDA 13; none was found. Keep the tensors on the CPU."};
  }
  if (e == cudaErrorNoKernelImageForDevice || e == cudaErrorUnsupportedPtxVersion) {
    return {
        "the CUDA module was not built for this GPU. Build it again with CMAKE_CUDA_ARCHITECTURES=native, or keep the "
        "tensors on the CPU."};
  }
  return {cudaGetErrorString(e)};
}

template <class... P>
Status launch(void (*kernel)(P...), const Grid& grid, void* stream, P... arguments) {
  kernel<<<grid.blocks, grid.threads, grid.dynamic_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return status_of(cudaGetLastError());
}

#else

template <class... P>
Status launch(void (*kernel)(P...), const Grid& grid, void* /*stream*/, P... arguments) {
  emulate::run({grid.blocks, grid.threads, grid.dynamic_bytes}, [=] { kernel(arguments...); });
  return {};
}

#endif

}  // namespace fastclf::cuda
