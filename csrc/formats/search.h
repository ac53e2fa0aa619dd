// How from_float chooses scales, minima and levels. Host only, compiled once (search.cpp).
//
// x: the block's weights; importance: one number >= 0 a weight, or nullptr. Levels q are unsigned; the headers pack
// them.
#pragma once

#include <cstdint>

#include "formats/rounding.h"

namespace gristmill::formats {

// 32 weights, w = d * (q - zero), q in 0..2 zero - 1. Returns d as f16 bits.
uint16_t fit_symmetric_block(const float* x, const float* importance, int zero, uint8_t* q);

// 32 weights, w = d * q + m, q in 0..max_q.
struct AffineBlock {
  uint16_t d, m;
};
AffineBlock fit_affine_block(const float* x, const float* importance, int max_q, uint8_t* q);

// 256 weights, w = d * scale[g] * q - dmin * min[g] with the codes scale and min in 0..max_code, q in 0..max_q.
struct AffineSpec {
  int group, max_q, max_code;
};
struct AffineSuperBlock {
  uint16_t d, dmin;
  uint8_t scale[16], min[16], q[256];
};
void fit_affine_super_block(const float* x, const float* importance, AffineSpec spec, AffineSuperBlock& out);

// 256 weights, w = d * scale[g] * (q - zero) with scale in -max_code - 1..max_code, q in 0..2 zero - 1.
struct SymmetricSpec {
  int group, zero, max_code;
};
struct SymmetricSuperBlock {
  uint16_t d;
  int8_t scale[16];
  uint8_t q[256];
};
void fit_symmetric_super_block(const float* x, const float* importance, SymmetricSpec spec, SymmetricSuperBlock& out);

// The same with w = d * scale[g] * iq4_level(q): 32 weights with d alone, and 256 with scale in -32..31.
uint16_t fit_iq4_block(const float* x, const float* importance, uint8_t* q);
void fit_iq4_super_block(const float* x, const float* importance, SymmetricSuperBlock& out);

}  // namespace gristmill::formats
