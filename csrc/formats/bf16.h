// BF16: the upper half of a float32: 1 sign, 8 exponent, 7 mantissa bits.
#pragma once

#include "formats/format.h"

namespace gristmill::formats {

struct BF16 {
  static constexpr TypeId kId = TypeId::BF16;
  static constexpr const char* kName = "BF16";
  static constexpr Kind kKind = Kind::kFloat;
  static constexpr int kBlockSize = 1;
  static constexpr float kMaxRelativeError = 0x1p-8f;  // half a unit in the last of 8 significant bits

  struct [[gnu::packed]] Block {
    uint16_t value;
  };
  static_assert(sizeof(Block) == 2);

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) { *y = bf16_to_float(b.value); }
  static inline void from_float(const float* x, const float* /*importance*/, Block& b) { b.value = float_to_bf16(*x); }
};

}  // namespace gristmill::formats
