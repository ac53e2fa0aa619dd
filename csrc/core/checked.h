// Overflow-checked size arithmetic: the one place where counts from outside are multiplied or added.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/error.h"

namespace gristmill {

inline uint64_t checked_mul(uint64_t a, uint64_t b) {
  uint64_t r;
  if (__builtin_mul_overflow(a, b, &r))
    throw GGUFError("[size] product of " + std::to_string(a) + " and " + std::to_string(b) + " does not fit 64 bits");
  return r;
}

inline uint64_t checked_add(uint64_t a, uint64_t b) {
  uint64_t r;
  if (__builtin_add_overflow(a, b, &r))
    throw GGUFError("[size] sum of " + std::to_string(a) + " and " + std::to_string(b) + " does not fit 64 bits");
  return r;
}

}  // namespace gristmill
