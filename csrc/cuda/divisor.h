// Division by a number that the host knows: a multiplication and a shift in place of the hundred clocks that a warp
// waits for a division. Granlund and Montgomery, Division by Invariant Integers using Multiplication (1994).
#pragma once

#include <cstdint>

#include "cuda/device/launch.h"

namespace gristmill::cuda {

// Of numbers from 0 to 2^31 - 1.
struct Divisor {
  uint32_t factor;  // 2^shift / divisor, rounded up
  int shift;

  HOST_DEVICE int quotient(int n) const { return int(uint64_t(n) * factor >> shift); }
};

// divisor: 1 to 2^31 - 1.
inline Divisor make_divisor(int divisor) {
  int bits = 0;
  while (int64_t{1} << bits < divisor) ++bits;
  return {uint32_t((uint64_t{1} << (31 + bits)) / uint64_t(divisor) + 1), 31 + bits};
}

}  // namespace gristmill::cuda
