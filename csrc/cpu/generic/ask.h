// Asking memory for what is needed soon, where the hardware does not run ahead or not far enough. Asking for what does
// not exist, beyond a matrix, is in vain and does no harm.
#pragma once

#include <cstdint>

#include "backend.h"
#include "cpu/generic/constants.h"

namespace gristmill::cpu {
namespace {

enum class Cache { kL1, kL2 };

template <Cache kCache>
GRISTMILL_INLINE void ask_for(uintptr_t p, int64_t n_bytes) {
  for (int64_t i = 0; i < n_bytes; i += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(p + uintptr_t(i)), 0, kCache == Cache::kL1 ? 3 : 2);
}

// Asks for a region into L2 line by line, as kStreams runs of equal length side by side: the hardware then runs ahead
// in several pages at once. In order of addresses the first lines of each page of 4 KiB wait for memory alone.
template <int kStreams>
class RegionAsker {
 public:
  RegionAsker(const std::byte* p, int64_t bytes) : p_(reinterpret_cast<uintptr_t>(p)), distance_(bytes / kStreams) {}
  // For so many bytes more.
  GRISTMILL_INLINE void advance(int64_t bytes) {
    for (due_ += bytes; due_ >= 64; due_ -= 64) {
      ask_for<Cache::kL2>(p_ + uintptr_t(stream_ * distance_), 64);
      if (++stream_ == kStreams) stream_ = 0, p_ += 64;
    }
  }

 private:
  uintptr_t p_;
  int64_t distance_, stream_ = 0, due_ = 0;
};

// Where weight k of a row is; past a row's end it is in the next one.
template <class Format>
GRISTMILL_INLINE uintptr_t weight_address(const Weight& w, int64_t row, int64_t k) {
  return reinterpret_cast<uintptr_t>(w.data) +
         uintptr_t(row * weight_bytes<Format>(w.n_cols) + weight_bytes<Format>(k));
}

}  // namespace
}  // namespace gristmill::cpu
