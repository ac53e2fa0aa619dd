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

// Asks for two regions side by side, into L2, a line of each in turn: the hardware then runs ahead in both. It waits
// for the first lines of each page of 4 KiB, and while it does a single region would wait alone.
class PairAsker {
 public:
  PairAsker(const std::byte* p, const std::byte* q)
      : p_(reinterpret_cast<uintptr_t>(p)), q_(reinterpret_cast<uintptr_t>(q)) {}
  // For so many bytes more of the two together. A few at a time: sixteen lines may be under way to L1, and whoever asks
  // for more waits.
  GRISTMILL_INLINE void advance(int64_t bytes) {
    for (due_ += bytes; due_ >= 128; due_ -= 128, p_ += 64, q_ += 64) {
      ask_for<Cache::kL2>(p_, 64);
      ask_for<Cache::kL2>(q_, 64);
    }
  }

 private:
  uintptr_t p_, q_;
  int64_t due_ = 0;
};

// Asks for a region while something else goes through n_steps steps, as many lines with each.
class StepAsker {
 public:
  void begin(const void* p, int64_t bytes, int64_t n_steps) {
    p_ = reinterpret_cast<uintptr_t>(p), end_ = p_ + uintptr_t(bytes);
    step_bytes_ = (bytes / 64 + n_steps - 1) / n_steps * 64;
  }
  template <Cache kCache>
  GRISTMILL_INLINE void advance() {
    if (p_ >= end_) return;
    ask_for<kCache>(p_, step_bytes_);
    p_ += uintptr_t(step_bytes_);
  }

 private:
  uintptr_t p_ = 0, end_ = 0;
  int64_t step_bytes_ = 0;
};

// Where weight k of a row is; past a row's end it is in the next one.
template <class Format>
GRISTMILL_INLINE uintptr_t weight_address(const Weight& w, int64_t row, int64_t k) {
  return reinterpret_cast<uintptr_t>(w.data) +
         uintptr_t(row * weight_bytes<Format>(w.n_cols) + weight_bytes<Format>(k));
}

}  // namespace
}  // namespace gristmill::cpu
