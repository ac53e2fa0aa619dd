// IQ4_NL: 32 weights in 18 bytes, w = d * level[q], the levels in iq4_codebook.h.
//   bytes  0  1 | 2 .. 17
//          d f16  byte j: low nibble = q[j], high nibble = q[j + 16]
// to_affine gives level + 128 instead of the index, so that kernels need no table.
#pragma once

#include "formats/format.h"
#include "formats/iq4_codebook.h"
#include "formats/search.h"

namespace gristmill::formats {

struct IQ4_NL {
  static constexpr TypeId kId = TypeId::IQ4_NL;
  static constexpr const char* kName = "IQ4_NL";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroup = 32;
  static constexpr int kZero = 128;
  static constexpr bool kHasMin = false;
  static constexpr float kMaxRelativeError = 23.0f / 127;  // the search may clip by the codebook's last step

  struct [[gnu::packed]] Block {
    uint16_t d;
    uint8_t qs[16];
  };
  static_assert(sizeof(Block) == 18);

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    const float d = half_to_float(b.d);
    for (int j = 0; j < 16; ++j) {
      y[j] = d * float(iq4_level(b.qs[j] & 15));
      y[j + 16] = d * float(iq4_level(b.qs[j] >> 4));
    }
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    from_floats(x, importance, &b, 1);
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<16, 32>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      uint16_t d[16];
      uint8_t levels[32 * 16];
      search().iq4(at, weight, count, d, levels);
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
      q[j] = uint8_t(iq4_level(b.qs[j] & 15) + 128);
      q[j + 16] = uint8_t(iq4_level(b.qs[j] >> 4) + 128);
    }
  }
};

}  // namespace gristmill::formats
