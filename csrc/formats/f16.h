// F16: one IEEE half a weight: 1 sign, 5 exponent, 10 mantissa bits. Beyond 65504 from_float gives infinity.
#pragma once

#include "formats/format.h"

namespace gristmill::formats {

struct F16 {
  static constexpr TypeId kId = TypeId::F16;
  static constexpr const char* kName = "F16";
  static constexpr Kind kKind = Kind::kFloat;
  static constexpr int kBlockSize = 1;
  static constexpr float kMaxRelativeError = 0x1p-11f;  // half a unit in the last of 11 significant bits

  struct [[gnu::packed]] Block {
    uint16_t value;
  };
  static_assert(sizeof(Block) == 2);

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) { *y = half_to_float(b.value); }
  static inline void from_float(const float* x, const float* /*importance*/, Block& b) { b.value = float_to_half(*x); }
};

}  // namespace gristmill::formats
