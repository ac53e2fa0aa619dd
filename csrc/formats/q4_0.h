// Q4_0: 32 weights in 18 bytes, w = d * (q - 8).
//   bytes  0  1 | 2 .. 17
//          d f16  byte j: low nibble = q[j], high nibble = q[j + 16]
#pragma once

#include "formats/format.h"
#include "formats/search.h"

namespace gristmill::formats {

struct Q4_0 {
  static constexpr TypeId kId = TypeId::Q4_0;
  static constexpr const char* kName = "Q4_0";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroup = 32;
  static constexpr int kZero = 8;
  static constexpr bool kHasMin = false;
  static constexpr float kMaxRelativeError = 1.0f / 8 + 2e-3f;  // q stops at +7: minus the extreme is a whole step off

  struct [[gnu::packed]] Block {
    uint16_t d;
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 18);

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    const float d = half_to_float(b.d);
    for (int j = 0; j < 16; ++j) {
      y[j] = float((b.qs[j] & 15) - 8) * d;
      y[j + 16] = float((b.qs[j] >> 4) - 8) * d;
    }
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<16, 32>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      uint16_t d[16];
      uint8_t levels[32 * 16];
      search().symmetric(at, weight, count, 8, d, levels);
      for (int i = 0; i < count; ++i) {
        Block& b = blocks[first + i];
        const uint8_t* q = levels + 32 * i;
        b.d = d[i];
        for (int j = 0; j < 16; ++j) b.qs[j] = uint8_t(q[j] | q[j + 16] << 4);
      }
    });
  }

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    scale[0] = half_to_float(b.d);
    min[0] = 0.0f;
    for (int j = 0; j < 16; ++j) {
      q[j] = b.qs[j] & 15;
      q[j + 16] = b.qs[j] >> 4;
    }
  }
};

}  // namespace gristmill::formats
