// Asynchronous copies: what they bring is poison until it is waited for.
#include <cstring>

#include "emulation/thread.h"

namespace gristmill::cuda::emulation {
namespace {

void do_copy(const Copy& c) {
  std::memcpy(c.to, c.early.empty() ? c.from : c.early.data(), c.bytes_from_memory);
  std::memset(static_cast<std::byte*>(c.to) + c.bytes_from_memory, 0, c.bytes - c.bytes_from_memory);
}

Copy make_copy(void* to, const void* from, unsigned bytes, unsigned bytes_from_memory) {
  Copy c{to, from, bytes, bytes_from_memory};
  const auto* begin = static_cast<const std::byte*>(from);
  if (changes_hidden()) c.early.assign(begin, begin + bytes_from_memory);
  return c;
}

CopyBarrier& barrier_at(uint64_t* barrier, const Site& site) {
  const auto it = block.barriers.find(barrier);
  if (it == block.barriers.end()) fail(site, "a copy barrier that was not initialized");
  return it->second;
}

}  // namespace

void queue_copy(void* to, const void* from, unsigned bytes, unsigned bytes_from_memory, const Site& site) {
  if (!is_shared(to, bytes)) fail(site, "an asynchronous copy to outside of shared memory");
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    fail(site, "an asynchronous copy of %u bytes between addresses that are not aligned to it", bytes);
  std::memset(to, kPoison, bytes);
  self().open.push_back(make_copy(to, from, bytes, bytes_from_memory));
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
  barrier_at(barrier, site).copies.push_back(make_copy(to, from, bytes, bytes));
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

}  // namespace gristmill::cuda::emulation
