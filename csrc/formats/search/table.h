// The functions of one instruction set, as formats/search.h lists them. Included behind one of lanes_*.h.
#pragma once

#include "formats/search/plain.h"

namespace gristmill::formats {
namespace {

// A loop that compilers turn into vectors of the file's own width.
inline uint32_t worst_magnitude(const float* x, int64_t n) {
  uint32_t worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    worst = bits > worst ? bits : worst;
  }
  return worst;
}

inline void to_bfloats(const float* x, uint16_t* h, int64_t n) {  // likewise; no NaN, so no branch
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    h[i] = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
}

constexpr Search make_table(const char* name, void (*halves)(const uint16_t*, float*, int64_t),
                            void (*to_halves)(const float*, uint16_t*, int64_t)) {
  return {
      .name = name,
      .halves = halves,
      .to_halves = to_halves,
      .to_bfloats = to_bfloats,
      .worst_magnitude = worst_magnitude,
      .symmetric =
          [](const float* x, const float* importance, int64_t n, int zero, uint16_t* d, uint8_t* q) {
            if (importance) return symmetric_blocks(x, importance, n, Integers{float(zero)}, d, q);
            plain_symmetric(x, n, zero, d, q);
          },
      .affine =
          [](const float* x, const float* importance, int64_t n, int max_q, AffineBlock* blocks, uint8_t* q) {
            if (importance) return led_affine(x, importance, n, max_q, blocks, q);
            plain_affine(x, n, max_q, blocks, q);
          },
      .eight_bits = plain_eight_bits,
      .affine_super = affine_super,
      .symmetric_super =
          [](const float* x, const float* importance, int64_t n, SymmetricSpec spec, SymmetricSuperBlock* out) {
            symmetric_super(x, importance, n, spec.group, spec.max_code, Integers{float(spec.zero)}, out);
          },
      .iq4 = [](const float* x, const float* importance, int64_t n, uint16_t* d,
                uint8_t* q) { symmetric_blocks(x, importance, n, Iq4Levels{}, d, q); },
      .iq4_super = [](const float* x, const float* importance, int64_t n,
                      SymmetricSuperBlock* out) { symmetric_super(x, importance, n, 32, 31, Iq4Levels{}, out); },
  };
}

}  // namespace
}  // namespace gristmill::formats
