// Q3_K: 256 weights in 110 bytes, 16 groups of 16, w = d * (sc - 32) * (q - 4).
//   bytes  0 .. 31                    | 32 .. 95                         | 96 .. 107        | 108 109
//          byte l: bit g =              byte 32 h + l: bits 2k, 2k+1 =     sc[16], 6 bits     d f16
//          q[32 g + l] >> 2, g < 8      q[128 h + 32 k + l] & 3, k < 4     each, see below
//   sc[g] & 15: byte 96 + g % 8, nibble g / 8;   sc[g] >> 4: byte 104 + g % 4, bits 2 (g / 4) and the next
#pragma once

#include "formats/format.h"
#include "formats/search.h"

namespace gristmill::formats {

struct Q3_K {
  static constexpr TypeId kId = TypeId::Q3_K;
  static constexpr const char* kName = "Q3_K";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroup = 16;
  static constexpr int kZero = 4;
  static constexpr bool kHasMin = false;
  static constexpr float kMaxRelativeError = 1.0f / 4 + 0.03f;  // one step of the widest grid; codes of 6 bits

  struct [[gnu::packed]] Block {
    uint8_t hmask[32];
    uint8_t qs[64];
    uint8_t scales[12];
    uint16_t d;
  };
  static_assert(sizeof(Block) == 110);

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    const float d = half_to_float(b.d);
    for (int g = 0; g < 16; ++g) {
      const int low = (b.scales[g % 8] >> (4 * (g / 8))) & 15;
      const int high = (b.scales[8 + g % 4] >> (2 * (g / 4))) & 3;
      scale[g] = d * float((low | high << 4) - 32);
      min[g] = 0.0f;
    }
    for (int g = 0; g < 8; ++g)
      for (int l = 0; l < 32; ++l) {
        const int low = (b.qs[32 * (g / 4) + l] >> (2 * (g % 4))) & 3;
        q[32 * g + l] = uint8_t(low | ((b.hmask[l] >> g) & 1) << 2);
      }
  }

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    uint8_t q[256];
    float scale[16], min[16];
    to_affine(b, q, scale, min);
    for (int i = 0; i < 256; ++i) y[i] = scale[i / 16] * float(q[i] - 4);
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<8, 256>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      SymmetricSuperBlock fits[8];
      search().symmetric_super(at, weight, count, {.group = 16, .zero = 4, .max_code = 31}, fits);
      for (int i = 0; i < count; ++i) {
        Block& b = blocks[first + i];
        const SymmetricSuperBlock& s = fits[i];
        b = {};
        b.d = s.d;
        for (int g = 0; g < 16; ++g) {
          const int code = s.scale[g] + 32;
          b.scales[g % 8] |= uint8_t((code & 15) << (4 * (g / 8)));
          b.scales[8 + g % 4] |= uint8_t((code >> 4) << (2 * (g / 4)));
        }
        for (int h = 0; h < 2; ++h)
          for (int l = 0; l < 32; ++l) {
            const uint8_t* q = s.q + 128 * h + l;
            b.qs[32 * h + l] = uint8_t((q[0] & 3) | (q[32] & 3) << 2 | (q[64] & 3) << 4 | (q[96] & 3) << 6);
          }
        for (int l = 0; l < 32; ++l) {
          uint8_t bits = 0;
          for (int g = 0; g < 8; ++g) bits = uint8_t(bits | (s.q[32 * g + l] >> 2) << g);
          b.hmask[l] = bits;
        }
      }
    });
  }
};

}  // namespace gristmill::formats
