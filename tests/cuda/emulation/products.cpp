// Products of a warpgroup, of what shared memory holds when they are waited for; until then sums are poison.
#include <cstring>

#include "core/half.h"
#include "emulation/thread.h"

namespace gristmill::cuda::emulation {
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

}  // namespace gristmill::cuda::emulation
