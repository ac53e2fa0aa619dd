// Q6_K: 256 weights in 210 bytes, 16 groups of 16, w = d * sc * (q - 32).
//   bytes  0 .. 127                              | 128 .. 191                       | 192 .. 207    | 208 209
//          byte 64 h + l: low nibble =             byte 128 + 32 h + l: bits 2k,      sc[16] int8     d f16
//          q[128 h + l] & 15, high nibble =        2k+1 = q[128 h + 32 k + l] >> 4,
//          q[128 h + 64 + l] & 15, l < 64          k < 4, l < 32
#pragma once

#include "formats/format.h"
#include "formats/search.h"

namespace gristmill::formats {

struct Q6_K {
  static constexpr TypeId kId = TypeId::Q6_K;
  static constexpr const char* kName = "Q6_K";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroup = 16;
  static constexpr int kZero = 32;
  static constexpr bool kHasMin = false;
  static constexpr float kMaxRelativeError = 1.0f / 32 + 0.004f;  // one step of the widest grid; codes of 8 bits

  struct [[gnu::packed]] Block {
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 210);

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    const float d = half_to_float(b.d);
    for (int g = 0; g < 16; ++g) {
      scale[g] = d * float(b.scales[g]);
      min[g] = 0.0f;
    }
    for (int h = 0; h < 2; ++h)
      for (int k = 0; k < 4; ++k)
        for (int l = 0; l < 32; ++l) {
          const int low = (b.ql[64 * h + 32 * (k % 2) + l] >> (4 * (k / 2))) & 15;
          q[128 * h + 32 * k + l] = uint8_t(low | ((b.qh[32 * h + l] >> (2 * k)) & 3) << 4);
        }
  }

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    uint8_t q[256];
    float scale[16], min[16];
    to_affine(b, q, scale, min);
    for (int i = 0; i < 256; ++i) y[i] = scale[i / 16] * float(q[i] - 32);
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<8, 256>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      SymmetricSuperBlock fits[8];
      search().symmetric_super(at, weight, count, {.group = 16, .zero = 32, .max_code = 127}, fits);
      for (int i = 0; i < count; ++i) {
        Block& b = blocks[first + i];
        const SymmetricSuperBlock& s = fits[i];
        b.d = s.d;
        for (int g = 0; g < 16; ++g) b.scales[g] = s.scale[g];
        for (int h = 0; h < 2; ++h) {
          const uint8_t* q = s.q + 128 * h;
          for (int l = 0; l < 64; ++l) b.ql[64 * h + l] = uint8_t((q[l] & 15) | (q[64 + l] & 15) << 4);
          for (int l = 0; l < 32; ++l)
            b.qh[32 * h + l] = uint8_t(q[l] >> 4 | q[32 + l] >> 4 << 2 | q[64 + l] >> 4 << 4 | q[96 + l] >> 4 << 6);
        }
      }
    });
  }
};

}  // namespace gristmill::formats
