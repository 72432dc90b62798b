// The vector code's table: one per instruction set, filled in kernels.cpp, chosen once in dispatch.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastclf {

// Which random words a dropout layer of one row draws.
struct DropoutRow {
  uint64_t seed;
  uint32_t step, layer, row;
  uint64_t drop_below;  // device/philox.h
};

struct Kernels {
  const char* name;
  // dst[i] = float32(src[i]), i < n.
  void (*widen)(const uint16_t* src, float* dst, size_t n);
  // Bit j of the result: element 64*word + j of the row is kept.
  uint64_t (*keep_bits)(const DropoutRow& row, uint32_t word);
};

// The table in use: the best that this processor runs, or what use_isa() chose.
const Kernels& kernels();

}  // namespace fastclf
