// Emulation of csrc/cuda/device/memory.h. Copies are queued and happen at the wait; until then the destination is
// poisoned.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/device/launch.h"

namespace gristmill::cuda {

using emulation::Site;

inline uint4 load_once16(const void* p, const Site& site = Site::current()) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulation::fail(site, "a load of 16 bytes that are not aligned");
  uint4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline void store8(void* p, uint2 v, const Site& site = Site::current()) {
  if (reinterpret_cast<uintptr_t>(p) % 8 != 0) emulation::fail(site, "a store of 8 bytes that are not aligned");
  std::memcpy(p, &v, sizeof(v));
}

inline void copy_async16(void* to, const void* from, const Site& site = Site::current()) {
  emulation::queue_copy(to, from, 16, 16, site);
}
inline void copy_async16(void* to, const void* from, int n, const Site& site = Site::current()) {
  if (n < 0 || n > 16) emulation::fail(site, "%d bytes of 16", n);
  emulation::queue_copy(to, from, 16, unsigned(n), site);
}
struct L2Policy {};
inline L2Policy first_to_go() { return {}; }
inline void copy_async16(void* to, const void* from, int n, L2Policy, const Site& site = Site::current()) {
  copy_async16(to, from, n, site);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int kLeft>
void wait_copies(const Site& site = Site::current()) {
  emulation::wait_copies(kLeft, site);
}

template <bool kBulk>
constexpr bool is_for_this_code() {
  return true;
}

inline void wrong_code(const Site& site = Site::current()) {
  emulation::fail(site, "a kernel's variant for another GPU was launched");
}

inline void barrier_init(uint64_t* barrier, unsigned arrivals, const Site& site = Site::current()) {
  emulation::init_copy_barrier(barrier, arrivals, site);
}
inline void fence_barrier_init() {}
inline void barrier_arrive_expect(uint64_t* barrier, unsigned bytes, const Site& site = Site::current()) {
  emulation::arrive_copy_barrier(barrier, bytes, site);
}
inline void barrier_arrive(uint64_t* barrier, const Site& site = Site::current()) {
  emulation::arrive_copy_barrier(barrier, 0, site);
}
inline void barrier_wait(uint64_t* barrier, unsigned parity, const Site& site = Site::current()) {
  emulation::wait_copy_barrier(barrier, parity, site);
}
inline void copy_bulk(void* to, const void* from, unsigned bytes, uint64_t* barrier,
                      const Site& site = Site::current()) {
  emulation::queue_bulk_copy(to, from, bytes, barrier, site);
}
inline void copy_bulk(void* to, const void* from, unsigned bytes, uint64_t* barrier, L2Policy,
                      const Site& site = Site::current()) {
  copy_bulk(to, from, bytes, barrier, site);
}
inline void fence_proxy_async() {}

template <class T>
T load_coherent(const T* p) {
  return *p;
}
inline unsigned atomic_add(unsigned* p, unsigned v) {
  const unsigned old = *p;
  *p = old + v;
  return old;
}
inline unsigned add_release(unsigned* p, unsigned v) { return atomic_add(p, v); }
inline void fence_acquire() {}
inline unsigned add_in_block(unsigned* p, unsigned v, const Site& site = Site::current()) {
  if (!emulation::is_shared(p, sizeof(*p))) emulation::fail(site, "a block's counter outside of shared memory");
  return atomic_add(p, v);
}
// Reads, so that AddressSanitizer sees what lies outside.
inline void prefetch(const void* p) { (void)*static_cast<const volatile char*>(p); }

inline void grid_dependency_wait() { emulation::grid_dependency_wait(); }
inline void grid_dependency_launch() {}

}  // namespace gristmill::cuda
