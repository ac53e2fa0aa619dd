// How from_floats chooses scales, minima and levels: host only, compiled once for each width of vector (search/), with
// the same bytes from all of them.
//
// x: blocks of weights, one after the other; importance: one number >= 0 a weight, or nullptr. Levels q are unsigned
// and in the order of the weights; the headers pack them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "formats/rounding.h"

namespace gristmill::formats {

// w = d * q + m
struct AffineBlock {
  uint16_t d, m;  // halves
};

// 256 weights, w = d * scale[g] * q - dmin * min[g] with the codes scale and min in 0..max_code, q in 0..max_q.
struct AffineSpec {
  int group, max_q, max_code;
};
struct AffineSuperBlock {
  uint16_t d, dmin;
  uint8_t scale[16], min[16], q[256];
};

// 256 weights, w = d * scale[g] * (q - zero) with scale in -max_code - 1..max_code, q in 0..2 zero - 1.
struct SymmetricSpec {
  int group, zero, max_code;
};
struct SymmetricSuperBlock {
  uint16_t d;
  int8_t scale[16];
  uint8_t q[256];
};

struct Search {
  const char* name;
  // F16 to float32; a signalling NaN may become a quiet one.
  void (*halves)(const uint16_t* h, float* y, int64_t n);
  // float32 that is not NaN to F16 or BF16, to nearest even.
  void (*to_halves)(const float* x, uint16_t* h, int64_t n);
  void (*to_bfloats)(const float* x, uint16_t* h, int64_t n);
  // The largest of the bits of |x|: above those of infinity where there is a NaN.
  uint32_t (*worst_magnitude)(const float* x, int64_t n);
  // n blocks of 32, w = d * (q - zero), q in 0..2 zero - 1.
  void (*symmetric)(const float* x, const float* importance, int64_t n, int zero, uint16_t* d, uint8_t* q);
  // n blocks of 32, w = d * q + m, q in 0..max_q.
  void (*affine)(const float* x, const float* importance, int64_t n, int max_q, AffineBlock* blocks, uint8_t* q);
  // n blocks of 32, w = d * q, q in -127..127.
  void (*eight_bits)(const float* x, int64_t n, uint16_t* d, int8_t* q);
  // n blocks of 256.
  void (*affine_super)(const float* x, const float* importance, int64_t n, AffineSpec spec, AffineSuperBlock* out);
  void (*symmetric_super)(const float* x, const float* importance, int64_t n, SymmetricSpec spec,
                          SymmetricSuperBlock* out);
  // The same with w = d * scale[g] * iq4_level(q): n blocks of 32 with d alone, and n of 256 with scale in -32..31.
  void (*iq4)(const float* x, const float* importance, int64_t n, uint16_t* d, uint8_t* q);
  void (*iq4_super)(const float* x, const float* importance, int64_t n, SymmetricSuperBlock* out);
};

// The widest that the machine has, or what GRISTMILL_ISA names.
const Search& search();

// Calls f(x, importance, first block, blocks) for at most kStep blocks of kSize weights at a time: searches work on
// many blocks at once, and what they find lies on the stack until it is packed.
template <int kStep, int kSize, class F>
inline void in_steps(const float* x, const float* importance, int64_t n, F&& f) {
  for (int64_t i = 0; i < n; i += kStep)
    f(x + i * kSize, importance ? importance + i * kSize : nullptr, i, int(std::min<int64_t>(kStep, n - i)));
}

}  // namespace gristmill::formats
