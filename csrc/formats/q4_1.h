// Q4_1: 32 weights in 20 bytes, w = d * q + m.
//   bytes  0  1 | 2  3 | 4 .. 19
//          d f16  m f16  byte j: low nibble = q[j], high nibble = q[j + 16]
#pragma once

#include "formats/format.h"
#include "formats/search.h"

namespace gristmill::formats {

struct Q4_1 {
  static constexpr TypeId kId = TypeId::Q4_1;
  static constexpr const char* kName = "Q4_1";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroup = 32;
  static constexpr int kZero = 0;
  static constexpr bool kHasMin = true;
  static constexpr float kMaxRelativeError =
      2.0f / 15 * 0.51f + 2e-3f;  // half a step of (max - min) / 15, and d, m in f16

  struct [[gnu::packed]] Block {
    uint16_t d, m;
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 20);

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    const float d = half_to_float(b.d), m = half_to_float(b.m);
    for (int j = 0; j < 16; ++j) {
      y[j] = float(b.qs[j] & 15) * d + m;
      y[j + 16] = float(b.qs[j] >> 4) * d + m;
    }
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<16, 32>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      AffineBlock fits[16];
      uint8_t levels[32 * 16];
      search().affine(at, weight, count, 15, fits, levels);
      for (int i = 0; i < count; ++i) {
        Block& b = blocks[first + i];
        const uint8_t* q = levels + 32 * i;
        b.d = fits[i].d;
        b.m = fits[i].m;
        for (int j = 0; j < 16; ++j) b.qs[j] = uint8_t(q[j] | q[j + 16] << 4);
      }
    });
  }

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    scale[0] = half_to_float(b.d);
    min[0] = half_to_float(b.m);
    for (int j = 0; j < 16; ++j) {
      q[j] = b.qs[j] & 15;
      q[j + 16] = b.qs[j] >> 4;
    }
  }
};

}  // namespace gristmill::formats
