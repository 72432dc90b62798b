// Every launcher of the native modules: plain pointers with their [shape], sizes and a stream.
//
// No torch and no pybind11 below this line. Callers (bindings.cpp, the C++ test driver) guarantee what the
// comments say: the checks of dtype, shape, contiguity and range live in one Python function per operation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastclf {

// What a launcher returns: no message means that it worked. Messages are static strings.
struct [[nodiscard]] Status {
  const char* error = nullptr;
};

enum class DType : int { float16 = 0, float32 = 1 };

// out[r, :] = float32(src[index[r], :]).
struct GatherRows {
  const void* src;       // [n, width] dtype, row-major
  DType dtype;
  const int64_t* index;  // [rows], each 0 <= index < n
  float* out;            // [rows, width]
  size_t rows, width;
};
Status gather_rows(const GatherRows& op, int threads, void* stream);

// out[b, j] = 0 with probability p, else 1 / (1 - p), from the counter generator (device/philox.h).
struct DropoutMask {
  uint64_t seed;
  uint32_t step, layer;
  double p;    // 0 <= p < 1
  float* out;  // [rows, cols]
  size_t rows, cols;
};
Status dropout_mask(const DropoutMask& op, int threads, void* stream);

// The instruction set whose vector code runs: baseline, avx2 or avx512. use_isa() chooses another for the process.
const char* isa();
Status use_isa(const char* name);

}  // namespace fastclf
