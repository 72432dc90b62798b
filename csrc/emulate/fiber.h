// A stack of its own to run a function on, switched to and back by hand, and the sanitizers notified.
#pragma once

#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace fastclf::emulate {

class Fiber {
 public:
  Fiber();                          // stands for whoever constructs it, on the stack it already has
  explicit Fiber(void (*entry)());  // begins at entry, which must never return, when it is first resumed
  Fiber(const Fiber&) = delete;
  ~Fiber();

  // Goes on where `to` stopped. Returns when somebody resumes this fiber. ThreadSanitizer takes fibers for threads:
  // a switch orders nothing between them.
  void resume(Fiber& to);

 private:
  static void begin();
  void arrived();

  std::unique_ptr<std::byte[]> stack_;
  void (*entry_)() = nullptr;
  const void* bottom_ = nullptr;  // of the stack, for AddressSanitizer
  size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* thread_ = nullptr;  // ThreadSanitizer's
#if defined(__x86_64__)
  void* stopped_at_ = nullptr;
#else
  ucontext_t context_ = {};
#endif
};

}  // namespace fastclf::emulate
