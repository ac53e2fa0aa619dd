// IQ4_XS: 256 weights in 136 bytes, 8 groups of 32, w = d * (sc - 32) * level[q], the levels in iq4_codebook.h.
//   bytes  0  1 | 2 3                  | 4 .. 7                     | 8 .. 135
//          d f16  uint16: bits 2g,       byte g / 2: nibble g % 2 =   byte 16 g + j: low nibble = q[32 g + j],
//                 2g+1 = sc[g] >> 4      sc[g] & 15                   high nibble = q[32 g + 16 + j], j < 16
#pragma once

#include "formats/format.h"
#include "formats/iq4_codebook.h"
#include "formats/search.h"

namespace gristmill::formats {

struct IQ4_XS {
  static constexpr TypeId kId = TypeId::IQ4_XS;
  static constexpr const char* kName = "IQ4_XS";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 256;
  static constexpr int kGroup = 32;
  static constexpr int kZero = 128;
  static constexpr bool kHasMin = false;
  static constexpr float kMaxRelativeError = 23.0f / 127;  // the search may clip by the codebook's last step

  struct [[gnu::packed]] Block {
    uint16_t d, scales_h;
    uint8_t scales_l[4];
    uint8_t qs[128];
  };
  static_assert(sizeof(Block) == 136);

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    const float d = half_to_float(b.d);
    for (int g = 0; g < 8; ++g) {
      const int low = (b.scales_l[g / 2] >> (4 * (g % 2))) & 15;
      const int high = (b.scales_h >> (2 * g)) & 3;
      scale[g] = d * float((low | high << 4) - 32);
      min[g] = 0.0f;
      for (int j = 0; j < 16; ++j) {
        q[32 * g + j] = uint8_t(iq4_level(b.qs[16 * g + j] & 15) + 128);
        q[32 * g + 16 + j] = uint8_t(iq4_level(b.qs[16 * g + j] >> 4) + 128);
      }
    }
  }

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    uint8_t q[256];
    float scale[8], min[8];
    to_affine(b, q, scale, min);
    for (int i = 0; i < 256; ++i) y[i] = scale[i / 32] * float(q[i] - 128);
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<8, 256>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      SymmetricSuperBlock fits[8];
      search().iq4_super(at, weight, count, fits);
      for (int i = 0; i < count; ++i) {
        Block& b = blocks[first + i];
        const SymmetricSuperBlock& s = fits[i];
        b = {};
        b.d = s.d;
        for (int g = 0; g < 8; ++g) {
          const int code = s.scale[g] + 32;
          b.scales_l[g / 2] |= uint8_t((code & 15) << (4 * (g % 2)));
          b.scales_h = uint16_t(b.scales_h | (code >> 4) << (2 * g));
          for (int j = 0; j < 16; ++j) b.qs[16 * g + j] = uint8_t(s.q[32 * g + j] | s.q[32 * g + 16 + j] << 4);
        }
      }
    });
  }
};

}  // namespace gristmill::formats
