// Q4_K: 256 weights in 144 bytes, 8 groups of 32, w = d * sc * q - dmin * m.
//   bytes  0  1 | 2  3   | 4 .. 15                      | 16 .. 143
//          d f16  dmin f16 sc[8], m[8], see k_scales.h    byte 32 p + l: low nibble = q[64 p + l],
//                                                         high nibble = q[64 p + 32 + l], p < 4
#pragma once

#include "formats/format.h"
#include "formats/k_scales.h"
#include "formats/search.h"

namespace gristmill::formats {

struct Q4_K {
  static constexpr TypeId kId = TypeId::Q4_K;
  static constexpr const char* kName = "Q4_K";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroup = 32;
  static constexpr int kZero = 0;
  static constexpr bool kHasMin = true;
  static constexpr float kMaxRelativeError = 2.0f / 15;  // the search may clip by one step of the widest grid

  struct [[gnu::packed]] Block {
    uint16_t d, dmin;
    uint8_t scales[12];
    uint8_t qs[128];
  };
  static_assert(sizeof(Block) == 144);

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    k_scales_to_float(b.d, b.dmin, b.scales, scale, min);
    for (int p = 0; p < 4; ++p)
      for (int l = 0; l < 32; ++l) {
        q[64 * p + l] = b.qs[32 * p + l] & 15;
        q[64 * p + 32 + l] = b.qs[32 * p + l] >> 4;
      }
  }

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    uint8_t q[256];
    float scale[8], min[8];
    to_affine(b, q, scale, min);
    for (int i = 0; i < 256; ++i) y[i] = scale[i / 32] * float(q[i]) + min[i / 32];
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<8, 256>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      AffineSuperBlock fits[8];
      search().affine_super(at, weight, count, {.group = 32, .max_q = 15, .max_code = 63}, fits);
      for (int i = 0; i < count; ++i) {
        Block& b = blocks[first + i];
        const AffineSuperBlock& s = fits[i];
        b.d = s.d;
        b.dmin = s.dmin;
        pack_k_scales(s.scale, s.min, b.scales);
        for (int p = 0; p < 4; ++p)
          for (int l = 0; l < 32; ++l) b.qs[32 * p + l] = uint8_t(s.q[64 * p + l] | s.q[64 * p + 32 + l] << 4);
      }
    });
  }
};

}  // namespace gristmill::formats
