// Conversions from float to small integers and to half that are defined for every input: out of range saturates, NaN
// takes the upper bound. The quantizers use nothing else, so that no value of a model can be undefined behaviour.
#pragma once

#include "core/half.h"

namespace gristmill::formats {

static inline float magnitude(float v) { return v < 0.0f ? -v : v; }
static inline float larger(float a, float b) { return a < b ? b : a; }

static inline float clamp_level(float v, float low, float high) {
  const float c = v < high ? v : high;
  return c > low ? c : low;
}

// Towards zero, into low..high.
static inline int truncate(float v, int low, int high) { return int(clamp_level(v, float(low), float(high))); }

// To nearest, ties to even, into low..high (magnitudes below 2^22): 1.5 * 2^23 leaves no fraction bits.
static inline int nearest(float v, int low, int high) {
  return int((clamp_level(v, float(low), float(high)) + 0x1.8p23f) - 0x1.8p23f);
}

// 1 / v; 0 where that is infinite, for such a v is zero as a half too.
static inline float reciprocal(float v) {
  const float r = 1.0f / (v != 0.0f ? v : 1.0f);
  return v != 0.0f && magnitude(r) <= 0x1.fffffep127f ? r : 0.0f;
}

// Limits v to the finite halves, +-65504: an infinite scale would make NaN of every zero.
static inline float saturate_half(float v) { return clamp_level(v, -65504.0f, 65504.0f); }

}  // namespace gristmill::formats
