// Q8_0: 32 weights in 34 bytes, w = d * qs.
//   bytes  0  1 | 2 .. 33
//          d f16  qs[32] int8; from_float uses -127..127 unless importance moves d
#pragma once

#include "formats/format.h"
#include "formats/search.h"

namespace gristmill::formats {

struct Q8_0 {
  static constexpr TypeId kId = TypeId::Q8_0;
  static constexpr const char* kName = "Q8_0";
  static constexpr Kind kKind = Kind::kAffine;
  static constexpr int kBlockSize = 32;
  static constexpr int kGroup = 32;
  static constexpr int kZero = 128;
  static constexpr bool kHasMin = false;
  static constexpr float kMaxRelativeError = 0.5f / 127 + 6e-4f;  // half a step, and d in f16

  struct [[gnu::packed]] Block {
    uint16_t d;
    int8_t qs[32];
  };
  static_assert(sizeof(Block) == 34);

  static GRISTMILL_FORMAT_FN void to_float(const Block& b, float* y) {
    const float d = half_to_float(b.d);
    for (int i = 0; i < 32; ++i) y[i] = float(b.qs[i]) * d;
  }

  static inline void from_float(const float* x, const float* importance, Block& b) {
    if (importance) return from_floats(x, importance, &b, 1);
    float peak = 0.0f;
    for (int i = 0; i < 32; ++i) peak = larger(peak, magnitude(x[i]));
    const float d = saturate_half(peak / 127.0f), inverse = reciprocal(d);
    b.d = float_to_half(d);
    for (int i = 0; i < 32; ++i) {
      const int level = truncate(magnitude(x[i]) * inverse + 0.5f, 0, 127);  // halves away from zero
      b.qs[i] = int8_t(x[i] < 0.0f ? -level : level);
    }
  }

  static inline void from_floats(const float* x, const float* importance, Block* blocks, int64_t n) {
    in_steps<16, 32>(x, importance, n, [&](const float* at, const float* weight, int64_t first, int count) {
      uint16_t d[16];
      int8_t q[32 * 16];
      if (weight) {
        uint8_t levels[32 * 16];
        search().symmetric(at, weight, count, 128, d, levels);
        for (int i = 0; i < 32 * count; ++i) q[i] = int8_t(levels[i] - 128);
      } else {
        search().eight_bits(at, count, d, q);
      }
      for (int i = 0; i < count; ++i) {
        blocks[first + i].d = d[i];
        for (int j = 0; j < 32; ++j) blocks[first + i].qs[j] = q[32 * i + j];
      }
    });
  }

  static GRISTMILL_FORMAT_FN void to_affine(const Block& b, uint8_t* q, float* scale, float* min) {
    scale[0] = half_to_float(b.d);
    min[0] = 0.0f;
    for (int i = 0; i < 32; ++i) q[i] = uint8_t(b.qs[i] + 128);
  }
};

}  // namespace gristmill::formats
