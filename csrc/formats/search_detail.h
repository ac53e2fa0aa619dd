// Shared by the two search files: eight floats at a time, and a block brought to a range in which no sum can overflow.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "formats/rounding.h"

namespace gristmill::formats {
namespace {

typedef float V8 __attribute__((vector_size(32)));

inline V8 load(const float* p) {
  V8 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline float sum(V8 v) { return ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7])); }

// nearest() of rounding.h, left as float.
inline V8 nearest_each(V8 v, float low, float high) {
  const V8 l = low - V8{}, h = high - V8{};
  v = v < h ? v : h;
  v = v > l ? v : l;
  return (v + 0x1.8p23f) - 0x1.8p23f;
}

// n weights scaled by a power of two to a largest magnitude of 0.5..1, each with its share in the error that a search
// minimizes: importance * sqrt(mean x^2 + x^2). Without an importance the larger weights still count more, since their
// error reaches further into the output; with one, it replaces what is known of the activations.
struct Prepared {
  float x[256];
  float share[256];
  double unit = 1.0;  // x * unit is the weight
  bool is_zero;       // below half of the smallest half: so is every weight of the block that comes of it

  Prepared(const float* weights, const float* importance, int n) {
    float peak = 0.0f;
    for (int i = 0; i < n; ++i) {
      x[i] = clamp_level(weights[i], -FLT_MAX, FLT_MAX);
      peak = larger(peak, magnitude(x[i]));
    }
    is_zero = !(peak >= 0x1p-25f);
    if (is_zero) return;
    unit = std::ldexp(1.0, std::ilogb(peak) + 1);
    const double inverse = 1.0 / unit;
    float squares = 0.0f, most = 0.0f;
    for (int i = 0; i < n; ++i) {
      x[i] = float(x[i] * inverse);
      squares += x[i] * x[i];
      if (importance) most = larger(most, importance[i]);
    }
    const float mean = squares / float(n);
    for (int i = 0; i < n; ++i) {
      share[i] = std::sqrt(mean + x[i] * x[i]);
      if (most > 0.0f) share[i] *= importance[i] / most;
    }
  }

  // A scale in units of x as the half the block will hold, and what that half means in units of x again. A scale too
  // small for a half becomes the smallest: the codes and levels chosen afterwards make good what they can.
  uint16_t to_half(float scale) const {
    const double value = double(scale) * unit;
    const uint16_t bits = float_to_half(value > 65504.0 ? 65504.0f : value < -65504.0 ? -65504.0f : float(value));
    return (bits & 0x7fff) == 0 && scale != 0.0f ? uint16_t(bits | 1) : bits;
  }
  float from_half(uint16_t bits) const { return float(double(half_to_float(bits)) / unit); }
};

}  // namespace
}  // namespace gristmill::formats
