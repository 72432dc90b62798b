#include "emulate/fiber.h"

#include <cstdint>

#include "emulate/sanitizers.h"

#if defined(__x86_64__)
// void fastclf_switch(void** save, void* load): the registers that a call must keep, then the stack.
extern "C" void fastclf_switch(void** save, void* load);
asm(R"(
.text
.type fastclf_switch, @function
fastclf_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastclf_switch, .-fastclf_switch
)");
#endif

namespace fastclf::emulate {

namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(FASTCLF_TSAN)
constexpr size_t kStackBytes = size_t{1} << 18;
#else
constexpr size_t kStackBytes = size_t{1} << 16;
#endif

Fiber* previous = nullptr;  // who has resumed the one that runs
Fiber* running = nullptr;

}  // namespace

Fiber::Fiber() : thread_(sanitizers::this_thread()) {}

Fiber::Fiber(void (*entry)())
    : stack_(new std::byte[kStackBytes]),
      entry_(entry),
      bottom_(stack_.get()),
      size_(kStackBytes),
      thread_(sanitizers::new_thread()) {
#if defined(__x86_64__)
  auto top = reinterpret_cast<uintptr_t>(stack_.get() + kStackBytes) & ~uintptr_t{15};
  auto* slots = reinterpret_cast<void**>(top) - 8;  // six registers, the return address, and what aligns the stack
  for (int i = 0; i < 8; ++i) slots[i] = nullptr;
  slots[6] = reinterpret_cast<void*>(&Fiber::begin);
  stopped_at_ = slots;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_.get();
  context_.uc_stack.ss_size = kStackBytes;
  makecontext(&context_, &Fiber::begin, 0);
#endif
}

Fiber::~Fiber() {
  if (stack_) sanitizers::end_thread(thread_);
}

void Fiber::begin() {
  running->arrived();
  running->entry_();
}

// Who was running before may live on a stack that only the sanitizer knows.
void Fiber::arrived() { sanitizers::end_switch(fake_stack_, &previous->bottom_, &previous->size_); }

void Fiber::resume(Fiber& to) {
  previous = this;
  running = &to;
  sanitizers::begin_switch(&fake_stack_, to.bottom_, to.size_, to.thread_);
#if defined(__x86_64__)
  fastclf_switch(&stopped_at_, to.stopped_at_);
#else
  swapcontext(&context_, &to.context_);
#endif
  arrived();
}

}  // namespace fastclf::emulate
