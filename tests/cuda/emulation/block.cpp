#include "emulation/block.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/half.h"
#include "emulation/fiber.h"

gristmill::cuda::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace gristmill::cuda::emulation {
namespace {

constexpr int kPoison = 0xff;

struct Copy {
  void* to;
  const void* from;
  unsigned bytes, bytes_from_memory;
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

enum class State { kReady, kWarp, kBlock, kPoll, kDone };

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

Block block;
std::mt19937_64 random_bits(1);

Thread& self() { return *block.current; }

bool same(const Site& a, const Site& b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

std::string state_of(const Thread& t) {
  switch (t.state) {
    case State::kReady:
      return "can run";
    case State::kWarp:
      return "waits for its warp at " + t.site.text();
    case State::kBlock:
      return "waits for its block (barrier " + std::to_string(t.barrier) + ") at " + t.site.text();
    case State::kPoll:
      return std::string("waits for ") + t.what + " at " + t.site.text();
    case State::kDone:
      return "has left the kernel";
  }
  return "";
}

void suspend(State state, const Site& site) {
  Thread& t = self();
  t.state = state;
  t.site = site;
  Fiber::leave();
}

void run_thread() {
  (*block.kernel)();
  self().state = State::kDone;
}

void do_copy(const Copy& c) {
  std::memcpy(c.to, c.from, c.bytes_from_memory);
  std::memset(static_cast<std::byte*>(c.to) + c.bytes_from_memory, 0, c.bytes - c.bytes_from_memory);
}

CopyBarrier& barrier_at(uint64_t* barrier, const Site& site) {
  const auto it = block.barriers.find(barrier);
  if (it == block.barriers.end()) fail(site, "a copy barrier that was not initialized");
  return it->second;
}

[[noreturn]] void fail_stuck() {
  std::fprintf(stderr, "emulation: %s, block (%u, %u, %u): no thread can go on\n", block.name, blockIdx.x, blockIdx.y,
               blockIdx.z);
  std::map<std::string, std::pair<unsigned, unsigned>> states;  // how many, and the first of them
  for (unsigned i = 0; i < block.n; ++i) {
    auto& entry = states[state_of(*block.threads[i])];
    if (entry.first++ == 0) entry.second = i;
  }
  for (const auto& [text, entry] : states)
    std::fprintf(stderr, "  %u threads, the first of them %u: %s\n", entry.first, entry.second, text.c_str());
  std::abort();
}

void run_block(const std::vector<unsigned>& order_of_launch, bool dependent) {
  if (block.shared_bytes) std::memset(block.shared.get(), kPoison, block.shared_bytes);
  block.barriers.clear();
  std::vector<unsigned> order = order_of_launch;
  for (unsigned i = 0; i < block.n; ++i) {
    Thread& t = *block.threads[i];
    t.state = State::kReady;
    t.open.clear();
    t.groups.clear();
    t.waited_for_grid = false;
    t.open_products.clear();
    t.product_groups.clear();
    t.accumulators.clear();
    t.fenced = false;
    t.fiber.start(run_thread);
  }
  for (unsigned done = 0; done < block.n;) {
    std::shuffle(order.begin(), order.end(), random_bits);
    bool progress = false;
    for (const unsigned i : order) {
      Thread& t = *block.threads[i];
      if (t.state == State::kPoll && t.ready(t.argument)) t.state = State::kReady;
      if (t.state != State::kReady) continue;
      block.current = &t;
      threadIdx = t.index;
      t.fiber.resume();
      progress = true;
      if (t.state == State::kDone) {
        ++done;
        const auto pending = [](const std::vector<Copy>& group) { return !group.empty(); };
        if (!t.open.empty() || std::any_of(t.groups.begin(), t.groups.end(), pending))
          fail(Site::current(), "left the kernel without waiting for its asynchronous copies");
        if (!t.accumulators.empty() || !t.open_products.empty())
          fail(Site::current(), "left the kernel without waiting for its products");
        if (dependent && !t.waited_for_grid)
          fail(Site::current(), "left a dependent launch without grid_dependency_wait()");
      }
    }
    if (!progress) fail_stuck();
  }
  for (const auto& [address, b] : block.barriers)
    if (!b.copies.empty()) fail(Site::current(), "the block ended before its bulk copies");
  block.current = nullptr;
}

}  // namespace

void fail(const Site& site, const char* format, ...) {
  std::fprintf(stderr, "emulation: %s", block.name);
  if (block.current)
    std::fprintf(stderr, ", block (%u, %u, %u), thread (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z,
                 block.current->index.x, block.current->index.y, block.current->index.z);
  std::fprintf(stderr, ", %s: ", site.text().c_str());
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

void set_seed(uint64_t seed) { random_bits.seed(seed); }

void run_grid(const char* name, Dim3 grid, Dim3 dims, size_t shared_bytes, bool dependent,
              const std::function<void()>& kernel) {
  block.name = name;
  block.current = nullptr;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    fail(Site::current(), "a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  block.n = dims.x * dims.y * dims.z;
  if (block.n == 0 || block.n > 1024 || shared_bytes > (227u << 10))
    fail(Site::current(), "a block of %u threads and %zu bytes of shared memory", block.n, shared_bytes);
  block.kernel = &kernel;
  block.shared_bytes = shared_bytes;
  // A block of its own for each launch, of the exact size, so that AddressSanitizer sees what lies outside.
  void* memory = nullptr;
  if (shared_bytes && posix_memalign(&memory, 1024, shared_bytes) != 0) std::abort();
  block.shared.reset(static_cast<std::byte*>(memory));
  while (block.threads.size() < block.n) block.threads.push_back(std::make_unique<Thread>());
  for (unsigned i = 0; i < block.n; ++i) {
    Thread& t = *block.threads[i];
    t.index = {i % dims.x, i / dims.x % dims.y, i / (dims.x * dims.y)};
    t.warp = int(i / 32);
    t.lane = int(i % 32);
  }
  gridDim = grid;
  blockDim = dims;
  std::vector<uint64_t> blocks(size_t(grid.x) * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), uint64_t{0});
  std::shuffle(blocks.begin(), blocks.end(), random_bits);
  std::vector<unsigned> order(block.n);
  std::iota(order.begin(), order.end(), 0u);
  for (const uint64_t b : blocks) {
    blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / (uint64_t(grid.x) * grid.y))};
    run_block(order, dependent);
  }
  block.shared.reset();
  block.kernel = nullptr;
}

namespace {
bool is_recording = false;
std::vector<std::function<void()>> recorded;
}  // namespace

void begin_recording() {
  if (is_recording) fail(Site::current(), "a capture inside of a capture");
  is_recording = true;
  recorded.clear();
}
std::vector<std::function<void()>> end_recording() {
  is_recording = false;
  return std::move(recorded);
}
bool recording() { return is_recording; }
void record_work(std::function<void()> work) { recorded.push_back(std::move(work)); }

int lane() { return self().lane; }
std::byte* shared_memory() { return block.shared.get(); }
unsigned block_threads() { return block.n; }

bool is_shared(const void* p, size_t bytes) {
  const auto* at = static_cast<const std::byte*>(p);
  return at >= block.shared.get() && at + bytes <= block.shared.get() + block.shared_bytes;
}

void meet_warp(uint32_t mask, WarpAction act, void* argument, const Site& site) {
  Thread& t = self();
  if (!(mask >> t.lane & 1)) fail(site, "lane %d is not in the mask %08x that it gives", t.lane, mask);
  t.mask = mask;
  t.act = act;
  t.argument = argument;
  void* lanes[32] = {};
  bool all_here = true;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const unsigned index = unsigned(t.warp) * 32 + i;
    if (index >= block.n) fail(site, "lane %u of the mask %08x does not exist", i, mask);
    Thread& other = *block.threads[index];
    if (&other != &t) {
      if (other.state == State::kDone) fail(site, "lane %u of the mask %08x has left the kernel", i, mask);
      if (other.state != State::kWarp) {
        all_here = false;
        continue;
      }
      if (other.act != act || !same(other.site, site))
        fail(site, "the warp has diverged: lane %u %s", i, state_of(other).c_str());
      if (other.mask != mask) fail(site, "the mask is %08x here and %08x for lane %u", mask, other.mask, i);
    }
    lanes[i] = other.argument;
  }
  if (!all_here) return suspend(State::kWarp, site);
  act(lanes, mask);
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) block.threads[unsigned(t.warp) * 32 + i]->state = State::kReady;
  // The last to come has no advantage over the others: who goes on first is chance again.
  suspend(State::kReady, site);
}

void meet_block(int id, unsigned n, const Site& site) {
  Thread& t = self();
  if (n % 32 != 0 && n != block.n) fail(site, "a barrier for %u threads, which are not whole warps", n);
  unsigned here = 1;
  for (unsigned i = 0; i < block.n; ++i) {
    const Thread& other = *block.threads[i];
    if (n == block.n && other.state == State::kDone) fail(site, "thread %u has left the kernel before this barrier", i);
    if (&other == &t || other.state != State::kBlock || other.barrier != id) continue;
    if (other.barrier_threads != n)
      fail(site, "barrier %d for %u threads here, for %u elsewhere", id, n, other.barrier_threads);
    // Named barriers are for warps with different roles, which meet from different places.
    if (id == 0 && !same(other.site, site))
      fail(site, "the block has diverged: thread %u %s", i, state_of(other).c_str());
    ++here;
  }
  t.barrier = id;
  t.barrier_threads = n;
  if (here < n) return suspend(State::kBlock, site);
  for (unsigned i = 0; i < block.n; ++i) {
    Thread& other = *block.threads[i];
    if (other.state == State::kBlock && other.barrier == id) other.state = State::kReady;
  }
  suspend(State::kReady, site);
}

void wait_until(bool (*ready)(void*), void* argument, const char* what, const Site& site) {
  Thread& t = self();
  t.ready = ready;
  t.argument = argument;
  t.what = what;
  suspend(ready(argument) ? State::kReady : State::kPoll, site);
}

void queue_copy(void* to, const void* from, unsigned bytes, unsigned bytes_from_memory, const Site& site) {
  if (!is_shared(to, bytes)) fail(site, "an asynchronous copy to outside of shared memory");
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    fail(site, "an asynchronous copy of %u bytes between addresses that are not aligned to it", bytes);
  std::memset(to, kPoison, bytes);
  self().open.push_back({to, from, bytes, bytes_from_memory});
}

void commit_copies() {
  Thread& t = self();
  t.groups.push_back(std::move(t.open));
  t.open.clear();
}

void wait_copies(unsigned groups_left, const Site&) {
  Thread& t = self();
  while (t.groups.size() > groups_left) {
    for (const Copy& c : t.groups.front()) do_copy(c);
    t.groups.pop_front();
  }
}

void init_copy_barrier(uint64_t* barrier, unsigned arrivals, const Site& site) {
  if (!is_shared(barrier, 8)) fail(site, "a copy barrier outside of shared memory");
  block.barriers[barrier] = {arrivals, arrivals, 0, 0, {}};
}

void arrive_copy_barrier(uint64_t* barrier, unsigned expected_bytes, const Site& site) {
  CopyBarrier& b = barrier_at(barrier, site);
  if (b.pending == 0) fail(site, "more arrivals at a copy barrier than it was made for (%u)", b.expected);
  b.bytes += expected_bytes;
  --b.pending;
  b.settle();
}

void queue_bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* barrier, const Site& site) {
  if (!is_shared(to, bytes)) fail(site, "a bulk copy to outside of shared memory");
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail(site, "a bulk copy whose size (%u) or addresses are no multiples of 16", bytes);
  std::memset(to, kPoison, bytes);
  barrier_at(barrier, site).copies.push_back({to, from, bytes, bytes});
}

void wait_copy_barrier(uint64_t* barrier, unsigned parity, const Site& site) {
  struct Argument {
    CopyBarrier* barrier;
    unsigned parity;
  } argument{&barrier_at(barrier, site), parity};
  wait_until(
      [](void* p) {
        const Argument& a = *static_cast<Argument*>(p);
        CopyBarrier& b = *a.barrier;
        if (b.phase == a.parity) {
          for (const Copy& c : b.copies) {
            do_copy(c);
            b.bytes -= c.bytes;
          }
          const bool some = !b.copies.empty();
          b.copies.clear();
          if (some) b.settle();
        }
        return b.phase != a.parity;
      },
      &argument, "asynchronous copies", site);
}

namespace {

// Half k of row `row` of an operand with rows of 128 bytes: the swizzle exchanges bits 4 to 6 of an address with those
// of 7 to 9.
float operand(uint64_t descriptor, int row, int k) {
  size_t at = size_t(descriptor & 0x3fffu) << 4;
  at += size_t(row / 8) * (size_t(descriptor >> 32 & 0x3fffu) << 4) + size_t(row % 8) * 128 + size_t(k) * 2;
  at ^= (at >> 7 & 7) << 4;
  uint16_t half;
  if (at + 2 > block.shared_bytes) fail(Site::current(), "an operand beyond shared memory");
  std::memcpy(&half, block.shared.get() + at, sizeof(half));
  return half_to_float(half);
}

void do_product(const Thread& t, const Product& p, float* d) {
  const int g = t.lane / 4, column = t.lane % 4 * 2, row = t.warp % 4 * 16 + g;
  float a[2][16];
  for (int half = 0; half < 2; ++half)
    for (int k = 0; k < 16; ++k) a[half][k] = operand(p.a, row + 8 * half, k);
  for (int j = 0; j < 32; ++j)
    for (int i = 0; i < 2; ++i) {
      float sums[2] = {};
      for (int k = 0; k < 16; ++k) {
        const float b = operand(p.b, 8 * j + column + i, k);
        sums[0] += a[0][k] * b;
        sums[1] += a[1][k] * b;
      }
      for (int half = 0; half < 2; ++half) {
        float& to = d[4 * j + 2 * half + i];
        to = p.add ? to + sums[half] : sums[half];
      }
    }
}

}  // namespace

void fence_products() { self().fenced = true; }

void queue_product(float* d, uint64_t a, uint64_t b, bool add, const Site& site) {
  meet_warp(0xffffffffu, [](void* const*, uint32_t) {}, nullptr, site);
  Thread& t = self();
  if (!t.fenced) fail(site, "a product without fence_products() before it");
  if (a >> 62 != 1 || b >> 62 != 1) fail(site, "operands that are not in the 128-byte swizzle");
  std::vector<float>& sums = t.accumulators[d];
  if (sums.empty()) {
    sums.assign(d, d + 128);
    std::memset(d, kPoison, 128 * sizeof(float));
  }
  t.open_products.push_back({d, a, b, add});
}

void commit_products() {
  Thread& t = self();
  t.product_groups.push_back(std::move(t.open_products));
  t.open_products.clear();
}

void wait_products(unsigned groups_left, const Site& site) {
  meet_warp(0xffffffffu, [](void* const*, uint32_t) {}, nullptr, site);
  Thread& t = self();
  while (t.product_groups.size() > groups_left) {
    for (const Product& p : t.product_groups.front()) do_product(t, p, t.accumulators[p.d].data());
    t.product_groups.pop_front();
  }
  // A warp waits as one: no lane goes on while another's products still read shared memory.
  meet_warp(0xffffffffu, [](void* const*, uint32_t) {}, nullptr, site);
  if (!t.product_groups.empty() || !t.open_products.empty()) return;
  for (const auto& [d, sums] : t.accumulators) std::memcpy(d, sums.data(), 128 * sizeof(float));
  t.accumulators.clear();
}

void grid_dependency_wait() { self().waited_for_grid = true; }

}  // namespace gristmill::cuda::emulation
