#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>

#include "emulation/thread.h"

gristmill::cuda::Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace gristmill::cuda::emulation {

Block block;

namespace {

std::mt19937_64 random_bits(1);

// A header's name has an address in each file that includes it. Lanes meet millions of times, mostly in one file.
bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

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
    case State::kGrid:
      return "waits for the kernel ahead";
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

// What waits for the kernel ahead goes on. Whether any did.
bool end_kernel_ahead() {
  show_changes();
  bool any = false;
  for (unsigned i = 0; i < block.n; ++i) {
    Thread& t = *block.threads[i];
    if (t.state != State::kGrid) continue;
    t.state = State::kReady;
    any = true;
  }
  return any;
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
  if (dependent) hide_changes();
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
    // As late as can be.
    if (!progress && !end_kernel_ahead()) fail_stuck();
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
  begin_launch(current_device(), dependent);
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
size_t recorded_count() { return recorded.size(); }
void record_work(std::function<void()> work, bool dependent) {
  if (dependent && recorded.empty()) fail(Site::current(), "a dependent launch at the head of a graph");
  recorded.push_back(std::move(work));
}

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

void grid_dependency_wait() {
  self().waited_for_grid = true;
  if (changes_hidden()) suspend(State::kGrid, Site::current());
}

}  // namespace gristmill::cuda::emulation
