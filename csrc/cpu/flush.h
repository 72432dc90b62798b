// Tiny results become zero while this lives: gradients of rows that are learnt reach 1e-38, and arithmetic on
// denormal numbers is a hundred times slower on some processors.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fastclf::cpu {

#if defined(__x86_64__)
class FlushTiny {
 public:
  FlushTiny() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushTiny() { _mm_setcsr(before_); }
  FlushTiny(const FlushTiny&) = delete;
  FlushTiny& operator=(const FlushTiny&) = delete;

 private:
  const unsigned before_;
};
#else
struct FlushTiny {
  FlushTiny() {}
};
#endif

}  // namespace fastclf::cpu
