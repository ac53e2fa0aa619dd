// Emulation of csrc/cuda/device/wgmma.h: a product happens when it is waited for, from what shared memory holds then; d
// is poisoned until the last product on it is done.
#pragma once

#include <cstdint>

#include "cuda/device/memory.h"

namespace gristmill::cuda {

constexpr int kWarpgroup = 128;

inline bool has_wgmma_code() { return true; }

// The fields of a matrix descriptor that the PTX ISA documents for wgmma.
inline uint64_t operand_at(const void* p, int k, const Site& site = Site::current()) {
  if (!emulation::is_shared(p, 1024) || reinterpret_cast<uintptr_t>(p) % 1024 != 0 || k % 16 != 0 || k >= 64)
    emulation::fail(site, "an operand that is not at 1024 aligned bytes of shared memory, or k %d", k);
  const auto offset = uint64_t(static_cast<const std::byte*>(p) - emulation::shared_memory()) + uint64_t(k) * 2;
  return offset >> 4 | uint64_t(1) << 16 | uint64_t(64) << 32 | uint64_t(1) << 62;
}
inline void fence_products() { emulation::fence_products(); }
inline void commit_products() { emulation::commit_products(); }
template <int kLeft>
void wait_products(const Site& site = Site::current()) {
  emulation::wait_products(kLeft, site);
}
inline void settle_products(float (&)[128]) {}
inline void multiply_64x256(float (&d)[128], uint64_t a, uint64_t b, bool add, const Site& site = Site::current()) {
  emulation::queue_product(d, a, b, add, site);
}

}  // namespace gristmill::cuda
