// The block of threads that runs, for the parts of the emulation that work on it: meeting points and the order of
// threads (block.cpp), asynchronous copies (copies.cpp), products of warpgroups (products.cpp).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "emulation/block.h"
#include "emulation/fiber.h"

namespace gristmill::cuda::emulation {

constexpr int kPoison = 0xff;

struct Copy {
  void* to;
  const void* from;
  unsigned bytes, bytes_from_memory;
  // What there was when the copy was issued, ahead of the wait for the kernel before: it may read at once.
  std::vector<std::byte> early = {};
};

struct CopyBarrier {
  unsigned expected = 0, pending = 0, phase = 0;
  int64_t bytes = 0;  // announced and not yet copied
  std::vector<Copy> copies;

  void settle() {
    if (pending == 0 && bytes == 0) {
      phase ^= 1;
      pending = expected;
    }
  }
};

// A warpgroup's product on the accumulators d of one thread.
struct Product {
  float* d;
  uint64_t a, b;
  bool add;
};

enum class State { kReady, kWarp, kBlock, kPoll, kGrid, kDone };

struct Thread {
  Fiber fiber;
  State state = State::kDone;
  Dim3 index;
  int warp = 0, lane = 0;
  // Where it waits and for what.
  Site site{};
  uint32_t mask = 0;
  WarpAction act = nullptr;
  void* argument = nullptr;
  int barrier = 0;
  unsigned barrier_threads = 0;
  bool (*ready)(void*) = nullptr;
  const char* what = "";

  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  bool waited_for_grid = false;

  std::vector<Product> open_products;
  std::deque<std::vector<Product>> product_groups;
  std::map<float*, std::vector<float>> accumulators;  // of products that are under way
  bool fenced = false;
};

struct Block {
  const char* name = "";
  const std::function<void()>* kernel = nullptr;
  std::vector<std::unique_ptr<Thread>> threads;  // more than n from earlier launches
  unsigned n = 0;
  std::unique_ptr<std::byte, void (*)(void*)> shared{nullptr, std::free};
  size_t shared_bytes = 0;
  std::map<const uint64_t*, CopyBarrier> barriers;
  Thread* current = nullptr;
};

extern Block block;

inline Thread& self() { return *block.current; }

}  // namespace gristmill::cuda::emulation
