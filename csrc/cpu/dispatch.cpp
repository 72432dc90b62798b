// Chooses the vector code for this processor.
#include <atomic>
#include <cstring>

#include "api.h"
#include "cpu/kernels.h"

namespace fastclf {

namespace baseline {
extern const Kernels table;
}
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}

namespace {

// Best first; only what this processor can run.
const Kernels* const* runnable() {
  static const Kernels* found[4] = {};
  static const bool filled = [] {
    size_t n = 0;
#ifdef FASTCLF_HAS_avx512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi"))
      found[n++] = &avx512::table;
#endif
#ifdef FASTCLF_HAS_avx2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
        __builtin_cpu_supports("bmi"))
      found[n++] = &avx2::table;
#endif
    found[n] = &baseline::table;
    return true;
  }();
  static_cast<void>(filled);
  return found;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> table{runnable()[0]};
  return table;
}

}  // namespace

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

const char* isa() { return kernels().name; }

Status use_isa(const char* name) {
  for (const Kernels* const* k = runnable(); *k; ++k) {
    if (std::strcmp((*k)->name, name) == 0) {
      chosen().store(*k, std::memory_order_relaxed);
      return {};
    }
  }
  return {"use_isa: this processor or build has no such instruction set; use baseline, avx2 or avx512"};
}

}  // namespace fastclf
