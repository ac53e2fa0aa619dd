// Q5_0: 32 weights in 22 bytes, w = d * (q - 16).
//   bytes  0  1 | 2 .. 5                    | 6 .. 21
//          d f16  32 bits, bit i = q[i] >> 4  byte j: low nibble = q[j] & 15, high nibble = q[j + 16] & 15
#pragma once

#include "formats/format.h"
#include "formats/search.h"

namespace gristmill::formats {

struct Q5_0 {
  static constexpr TypeId kId = TypeId::Q5_0;
  static constexpr const char* kName = "Q5_0";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroup = 32;
  static constexpr int kZero = 16;
  static constexpr bool kHasMin = false;
  static constexpr float kMaxRelativeError =
      1.0f / 16 + 2e-3f;  // q stops at +15: minus the extreme is a whole step off

  struct [[gnu::packed]] Block {
    uint16_t d;
    uint8_t qh[4];
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 22);

  static GRISTMILL_FORMAT_FN void levels(const Block& b, uint8_t* q) {
    for (int j = 0; j < 16; ++j) {
      q[j] = uint8_t((b.qs[j] & 15) | (b.qh[j / 8] >> (j % 8) & 1) << 4);
      q[j + 16] = uint8_t((b.qs[j] >> 4) | (b.qh[j / 8 + 2] >> (j % 8) & 1) << 4);
    }
  }

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    const float d = half_to_float(b.d);
    uint8_t q[32];
    levels(b, q);
    for (int i = 0; i < 32; ++i) y[i] = float(q[i] - 16) * d;
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<16, 32>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      uint16_t d[16];
      uint8_t levels[32 * 16];
      search().symmetric(at, weight, count, 16, d, levels);
      for (int i = 0; i < count; ++i) {
        Block& b = blocks[first + i];
        const uint8_t* q = levels + 32 * i;
        b.d = d[i];
        for (int k = 0; k < 4; ++k) {
          uint8_t bits = 0;
          for (int j = 0; j < 8; ++j) bits = uint8_t(bits | (q[8 * k + j] >> 4) << j);
          b.qh[k] = bits;
        }
        for (int j = 0; j < 16; ++j) b.qs[j] = uint8_t((q[j] & 15) | (q[j + 16] & 15) << 4);
      }
    });
  }

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    scale[0] = half_to_float(b.d);
    min[0] = 0.0f;
    levels(b, q);
  }
};

}  // namespace gristmill::formats
