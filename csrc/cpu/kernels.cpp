// Compiled once per instruction set (CMakeLists.txt), each time in the namespace FASTCLF_ISA.
#include "cpu/kernels.h"

#include "cpu/philox.h"
#include "cpu/vec.h"

#define FASTCLF_TEXT(x) #x
#define FASTCLF_NAME(x) FASTCLF_TEXT(x)

namespace fastclf::FASTCLF_ISA {

namespace {

void widen(const uint16_t* src, float* dst, size_t n) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load_half(src + i));
  for (; i < n; ++i) dst[i] = widen_one(src[i]);
}

}  // namespace

extern const Kernels table;
const Kernels table = {FASTCLF_NAME(FASTCLF_ISA), widen, keep_bits};

}  // namespace fastclf::FASTCLF_ISA
