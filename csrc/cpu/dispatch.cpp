// Chooses the vector code for this processor.
#include <atomic>
#include <cstring>

#include "cpu/launchers.h"
#include "cpu/vector_code.h"

namespace fastclf::cpu {

namespace baseline {
extern const VectorCode table;
}
namespace avx2 {
extern const VectorCode table;
}
namespace avx512 {
extern const VectorCode table;
}

namespace {

// Best first; only what this processor can run.
const VectorCode* const* runnable() {
  static const VectorCode* found[4] = {};
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

std::atomic<const VectorCode*>& chosen() {
  static std::atomic<const VectorCode*> table{runnable()[0]};
  return table;
}

}  // namespace

const VectorCode& vector_code() { return *chosen().load(std::memory_order_relaxed); }

const char* isa() { return vector_code().name; }

Status use_isa(const char* name) {
  for (const VectorCode* const* code = runnable(); *code; ++code) {
    if (std::strcmp((*code)->name, name) == 0) {
      chosen().store(*code, std::memory_order_relaxed);
      return {};
    }
  }
  return {"use_isa: this processor or build has no such instruction set; use baseline, avx2 or avx512"};
}

}  // namespace fastclf::cpu
