#include "emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "emulation/sanitizer.h"

#if !defined(__x86_64__)
#error "the fiber switch of the kernel emulation is written for x86-64"
#endif

#if defined(GRISTMILL_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Saves the callee-saved registers of the System V ABI on the old stack, changes stacks, restores them from the new.
asm(R"(
.text
.globl gristmill_switch_stack
.type gristmill_switch_stack, @function
gristmill_switch_stack:
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
.size gristmill_switch_stack, .-gristmill_switch_stack
)");
extern "C" void gristmill_switch_stack(void** save, void* load);

namespace gristmill::cuda::emulation {
namespace {

Fiber* running = nullptr;
void* scheduler_stack_pointer = nullptr;

#if defined(GRISTMILL_ASAN)
const void* scheduler_bottom = nullptr;
std::size_t scheduler_bytes = 0;
void* scheduler_fake_stack = nullptr;
#endif

}  // namespace

Fiber::~Fiber() {
  if (stack_) munmap(stack_, kStackBytes);
}

void Fiber::start(void (*entry)()) {
  if (!stack_) {
    void* memory =
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stack_ = static_cast<std::byte*>(memory);
    mprotect(stack_, 4096, PROT_NONE);  // running over the end faults
#if defined(GRISTMILL_ASAN)
    __asan_unpoison_memory_region(stack_ + 4096, kStackBytes - 4096);  // of what was mapped there before
#endif
  }
  entry_ = entry;
  // What the switch pops: six registers, the address it returns to, and a word that aligns the stack as a call would.
  void* frame[8] = {};
  frame[6] = reinterpret_cast<void*>(&Fiber::run);
  stack_pointer_ = stack_ + kStackBytes - sizeof(frame);
  std::memcpy(stack_pointer_, frame, sizeof(frame));
}

// Never returns, so that what AddressSanitizer poisoned of its frame would stay so for the next start.
__attribute__((no_sanitize("address"))) void Fiber::run() {
#if defined(GRISTMILL_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_bytes);
#endif
  running->entry_();
#if defined(GRISTMILL_ASAN)
  __sanitizer_start_switch_fiber(nullptr, scheduler_bottom, scheduler_bytes);
#endif
  gristmill_switch_stack(&running->stack_pointer_, scheduler_stack_pointer);
  std::abort();
}

void Fiber::resume() {
  running = this;
#if defined(GRISTMILL_ASAN)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, stack_, kStackBytes);
#endif
  gristmill_switch_stack(&scheduler_stack_pointer, stack_pointer_);
#if defined(GRISTMILL_ASAN)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave() {
  Fiber* self = running;
#if defined(GRISTMILL_ASAN)
  __sanitizer_start_switch_fiber(&self->fake_stack_, scheduler_bottom, scheduler_bytes);
#endif
  gristmill_switch_stack(&self->stack_pointer_, scheduler_stack_pointer);
#if defined(GRISTMILL_ASAN)
  __sanitizer_finish_switch_fiber(self->fake_stack_, nullptr, nullptr);
#endif
}

}  // namespace gristmill::cuda::emulation
