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

// Where weight k of a row is; past a row's end it is in the next one.
template <class Format>
GRISTMILL_INLINE uintptr_t weight_address(const Weight& w, int64_t row, int64_t k) {
  return reinterpret_cast<uintptr_t>(w.data) +
         uintptr_t(row * weight_bytes<Format>(w.n_cols) + weight_bytes<Format>(k));
}

}  // namespace
}  // namespace gristmill::cpu
