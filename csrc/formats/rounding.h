// Conversions from float to small integers and to half that are defined for every input: out of range saturates, NaN
// takes the lower bound. The quantizers use nothing else, so that no value of a model can be undefined behaviour.
#pragma once

#include "core/half.h"

namespace gristmill::formats {

static inline float magnitude(float v) { return v < 0.0f ? -v : v; }
static inline float larger(float a, float b) { return a < b ? b : a; }

// Towards zero, into low..high.
static inline int truncate(float v, int low, int high) {
  return v > float(low) ? (v < float(high) ? int(v) : high) : low;
}

// To nearest, ties to even, into low..high (magnitudes below 2^22): 1.5 * 2^23 leaves no fraction bits.
static inline int nearest(float v, int low, int high) {
  const float clamped = v > float(low) ? (v < float(high) ? v : float(high)) : float(low);
  return int((clamped + 0x1.8p23f) - 0x1.8p23f);
}

// 1 / v; 0 where that is infinite, for such a v is zero as a half too.
static inline float reciprocal(float v) {
  const float r = 1.0f / (v != 0.0f ? v : 1.0f);
  return v != 0.0f && magnitude(r) <= 0x1.fffffep127f ? r : 0.0f;
}

// Limits v to the finite halves, +-65504: an infinite scale would make NaN of every zero.
static inline float saturate_half(float v) { return v > 65504.0f ? 65504.0f : v < -65504.0f ? -65504.0f : v; }

}  // namespace gristmill::formats
