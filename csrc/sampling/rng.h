// The one source of randomness. The C++ standard fixes mt19937 to the bit but not what its distributions do with it,
// so the conversion to a uniform number is written out: the same seed gives the same draws on every platform.
#pragma once

#include <cstdint>
#include <random>

namespace gristmill::sampling {

class Rng {
 public:
  explicit Rng(uint32_t seed) : engine_(seed) {}

  // Uniform in [0, 1), 53 random bits: 27 of one output and 26 of the next (Matsumoto's genrand_res53).
  double uniform() {
    const uint64_t high = engine_() >> 5, low = engine_() >> 6;
    return static_cast<double>((high << 26) | low) * 0x1p-53;
  }

 private:
  std::mt19937 engine_;
};

}  // namespace gristmill::sampling
