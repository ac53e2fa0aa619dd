// F32: one float32 a weight.
#pragma once

#include "formats/format.h"

namespace gristmill::formats {

struct F32 {
  static constexpr TypeId kId = TypeId::F32;
  static constexpr const char* kName = "F32";
  static constexpr Kind kKind = Kind::kFloat;
  static constexpr int kBlockSize = 1;
  static constexpr float kMaxRelativeError = 0.0f;

  struct [[gnu::packed]] Block {
    float value;
  };
  static_assert(sizeof(Block) == 4);

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) { *y = b.value; }
  static inline void from_float(const float* x, const float* /*importance*/, Block& b) { b.value = *x; }
};

}  // namespace gristmill::formats
