// Reading memory as fast as it comes, in one stream or in several side by side: which of them is faster depends on how
// the processor prefetches. V: load(p), zero(), exclusive_or(a, b) and fold(a) of kBytes, a power of two up to 64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace gristmill::cpu {

// The exclusive or of all 64-bit words, the last one filled up with zeros.
template <class V, int kStreams>
uint64_t read_bytes(const std::byte* p, size_t n) {
  constexpr size_t kStep = 256 / kStreams;  // of each stream in turn
  constexpr size_t kAhead = 1024;           // bytes that are prefetched where streams are many
  constexpr int kSums = 4;
  typename V::T sum[kSums] = {V::zero(), V::zero(), V::zero(), V::zero()};
  const size_t length = n / 256 * kStep;
  for (size_t i = 0; i < length; i += kStep) {
    for (int s = 0; s < kStreams; ++s) {
      const std::byte* from = p + size_t(s) * length + i;
      if (kStreams > 1) __builtin_prefetch(from + kAhead);
      for (size_t j = 0; j < kStep; j += V::kBytes) {
        auto& to = sum[(size_t(s) * kStep + j) / V::kBytes % kSums];
        to = V::exclusive_or(to, V::load(from + j));
      }
    }
  }
  for (size_t i = length * kStreams; i < n; i += V::kBytes) {
    alignas(64) std::byte rest[V::kBytes] = {};
    std::memcpy(rest, p + i, n - i < V::kBytes ? n - i : V::kBytes);
    sum[0] = V::exclusive_or(sum[0], V::load(rest));
  }
  return V::fold(V::exclusive_or(V::exclusive_or(sum[0], sum[1]), V::exclusive_or(sum[2], sum[3])));
}

}  // namespace gristmill::cpu
