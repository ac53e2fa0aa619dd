// Q2_K: 256 weights in 84 bytes, 16 groups of 16, w = d * sc * q - dmin * m.
//   bytes  0 .. 15                       | 16 .. 79                                   | 80 81   | 82 83
//          group g: low nibble = sc[g],    byte 32 h + l: bits 2k, 2k+1 =               d f16     dmin f16
//          high nibble = m[g]              q[128 h + 32 k + l], k < 4, l < 32
#pragma once

#include "formats/format.h"
#include "formats/search.h"

namespace gristmill::formats {

struct Q2_K {
  static constexpr TypeId kId = TypeId::Q2_K;
  static constexpr const char* kName = "Q2_K";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroup = 16;
  static constexpr int kZero = 0;
  static constexpr bool kHasMin = true;
  static constexpr float kMaxRelativeError = 2.0f / 3;  // the search may clip by one step of the widest grid

  struct [[gnu::packed]] Block {
    uint8_t scales[16];
    uint8_t qs[64];
    uint16_t d, dmin;
  };
  static_assert(sizeof(Block) == 84);

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
    for (int g = 0; g < 16; ++g) {
      scale[g] = d * float(b.scales[g] & 15);
      min[g] = -(dmin * float(b.scales[g] >> 4));
    }
    for (int h = 0; h < 2; ++h)
      for (int k = 0; k < 4; ++k)
        for (int l = 0; l < 32; ++l) q[128 * h + 32 * k + l] = (b.qs[32 * h + l] >> (2 * k)) & 3;
  }

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    uint8_t q[256];
    float scale[16], min[16];
    to_affine(b, q, scale, min);
    for (int i = 0; i < 256; ++i) y[i] = scale[i / 16] * float(q[i]) + min[i / 16];
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<8, 256>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      AffineSuperBlock fits[8];
      search().affine_super(at, weight, count, {.group = 16, .max_q = 3, .max_code = 15}, fits);
      for (int i = 0; i < count; ++i) {
        Block& b = blocks[first + i];
        const AffineSuperBlock& s = fits[i];
        b.d = s.d;
        b.dmin = s.dmin;
        for (int g = 0; g < 16; ++g) b.scales[g] = uint8_t(s.scale[g] | s.min[g] << 4);
        for (int h = 0; h < 2; ++h)
          for (int l = 0; l < 32; ++l) {
            const uint8_t* q = s.q + 128 * h + l;
            b.qs[32 * h + l] = uint8_t(q[0] | q[32] << 2 | q[64] << 4 | q[96] << 6);
          }
      }
    });
  }
};

}  // namespace gristmill::formats
