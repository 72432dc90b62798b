// Annotations for the sanitizers; nothing where none is at work. FASTCLF_TSAN stands for __SANITIZE_THREAD__: the
// emulation itself is compiled without ThreadSanitizer, which must see the kernels only.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(FASTCLF_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace fastclf::emulate::sanitizers {

inline void* this_thread() {
#if defined(FASTCLF_TSAN)
  return __tsan_get_current_fiber();
#else
  return nullptr;
#endif
}

inline void* new_thread() {
#if defined(FASTCLF_TSAN)
  return __tsan_create_fiber(0);
#else
  return nullptr;
#endif
}

inline void end_thread([[maybe_unused]] void* thread) {
#if defined(FASTCLF_TSAN)
  __tsan_destroy_fiber(thread);
#endif
}

inline void begin_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const void* bottom,
                         [[maybe_unused]] size_t size, [[maybe_unused]] void* thread) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake_stack, bottom, size);
#endif
#if defined(FASTCLF_TSAN)
  constexpr unsigned kNoSync = 1;
  __tsan_switch_to_fiber(thread, kNoSync);
#endif
}

inline void end_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] const void** bottom,
                       [[maybe_unused]] size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
#endif
}

// All before release(place) happens before all after acquire(place).
inline void release([[maybe_unused]] void* place) {
#if defined(FASTCLF_TSAN)
  __tsan_release(place);
#endif
}

inline void acquire([[maybe_unused]] void* place) {
#if defined(FASTCLF_TSAN)
  __tsan_acquire(place);
#endif
}

// While it lives, allocating is not seen as writing.
class Unseen {
 public:
#if defined(FASTCLF_TSAN)
  Unseen() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unseen() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unseen() {}
#endif
  Unseen(const Unseen&) = delete;
};

}  // namespace fastclf::emulate::sanitizers
