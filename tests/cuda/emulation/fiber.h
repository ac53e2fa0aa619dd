// A fiber: a function with a stack of its own that can be left in the middle and entered again. The switch is
// hand-written (swapcontext makes a system call each time) and tells AddressSanitizer which stack is in use.
#pragma once

#include <cstddef>

namespace gristmill::cuda::emulation {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Makes entry() what the next resume() enters. Its exceptions would have nowhere to go; it must not throw.
  void start(void (*entry)());
  // Runs the fiber until it calls leave() or its entry returns. Called outside of any fiber.
  void resume();
  // Back to who resumed the running fiber.
  static void leave();

 private:
  static void run();

  static constexpr std::size_t kStackBytes = 192 << 10;
  std::byte* stack_ = nullptr;  // lowest address
  void* stack_pointer_ = nullptr;
  void (*entry_)() = nullptr;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
};

}  // namespace gristmill::cuda::emulation
