// Blocks of 32 without importance, by ggml's own rules and to the same bytes: the scale follows from the extremes.
#pragma once

#include "formats/search/affine.h"
#include "formats/search/symmetric.h"

namespace gristmill::formats {
namespace {

struct Extremes {
  float low, high;
};

inline Extremes extremes(const float* x) {
  F low = load(x), high = low;
  for (int i = kLanes; i < 32; i += kLanes) {
    low = min_each(load(x + i), low);
    high = max_each(load(x + i), high);
  }
  Extremes e = {lowest_of(low), highest_of(high)};
  if (e.low == 0.0f || e.high == 0.0f) {  // the sign of a zero ends up in the file: it is the first one's
    e = {x[0], x[0]};
    for (int i = 1; i < 32; ++i) {
      e.low = x[i] < e.low ? x[i] : e.low;
      e.high = larger(e.high, x[i]);
    }
  }
  return e;
}

// truncate(x * inverse + offset) of rounding.h, each
inline F levels_of(F x, float inverse, float offset, float top) {
  return max_each(min_each(x * inverse + offset, all(top)), all(0.0f));
}

inline void plain_symmetric(const float* x, int64_t n, int zero, uint16_t* d_bits, uint8_t* q) {
  for (int64_t b = 0; b < n; ++b, x += 32, q += 32) {
    const Extremes e = extremes(x);
    const float peak = e.high > -e.low ? e.high : e.high < -e.low ? e.low : extreme(x, 32);
    const float d = saturate_half(peak / float(-zero)), inverse = reciprocal(d);
    for (int i = 0; i < 32; i += kLanes)
      store_bytes(q + i, levels_of(load(x + i), inverse, float(zero) + 0.5f, float(2 * zero - 1)));
    d_bits[b] = float_to_half(d);
  }
}

inline void affine_levels(const float* x, float low, float d, int max_q, uint8_t* q) {
  const float inverse = reciprocal(d);
  for (int i = 0; i < 32; i += kLanes) store_bytes(q + i, levels_of(load(x + i) - low, inverse, 0.5f, float(max_q)));
}

inline void plain_affine(const float* x, int64_t n, int max_q, AffineBlock* blocks, uint8_t* q) {
  for (int64_t b = 0; b < n; ++b) {
    const Extremes e = extremes(x + b * 32);
    const float low = saturate_half(e.low), d = saturate_half((e.high - low) / float(max_q));
    blocks[b] = {float_to_half(d), float_to_half(low)};
    affine_levels(x + b * 32, low, d, max_q, q + b * 32);
  }
}

// The same with importance, where the line is searched for.
inline void led_affine(const float* x, const float* importance, int64_t n, int max_q, AffineBlock* blocks, uint8_t* q) {
  plain_affine(x, n, max_q, blocks, q);
  for (int64_t i = 0; i < n; i += kGroups) {
    const int count = n - i < kGroups ? int(n - i) : kGroups;
    const Batch batch(x + i * 32, importance + i * 32, count, 32, 1);
    alignas(64) float scale[kGroups], min[kGroups];
    for (int v = 0; v < kGroups; v += kLanes) {
      const Line line = fit(AffineGroups{batch.x + v, batch.share + v, 32, all(float(max_q))}, true);
      store(scale + v, line.scale);
      store(min + v, line.min);
    }
    for (int b = 0; b < count; ++b) {
      if (batch.is_zero[b]) continue;
      AffineBlock& block = blocks[i + b];
      block = {batch.to_half(b, scale[b]), batch.to_half(b, min[b])};
      affine_levels(x + (i + b) * 32, half_to_float(block.m), half_to_float(block.d), max_q, q + (i + b) * 32);
    }
  }
}

inline void plain_eight_bits(const float* x, int64_t n, uint16_t* d_bits, int8_t* q) {
  for (int64_t b = 0; b < n; ++b, x += 32, q += 32) {
    F peak = all(0.0f);
    for (int i = 0; i < 32; i += kLanes) peak = max_each(abs_each(load(x + i)), peak);
    const float d = saturate_half(highest_of(peak) / 127.0f), inverse = reciprocal(d);
    for (int i = 0; i < 32; i += kLanes) {  // halves away from zero
      const F v = load(x + i), level = levels_of(abs_each(v), inverse, 0.5f, 127.0f);
      store_bytes(reinterpret_cast<uint8_t*>(q) + i, select(less(v, all(0.0f)), -level, level));
    }
    d_bits[b] = float_to_half(d);
  }
}

}  // namespace
}  // namespace gristmill::formats
