// Sixteen groups of weights side by side, a lane each. Every step of a search treats all lanes alike and no sum runs
// across lanes but in order, so the bytes found do not depend on how many lanes an instruction set has.
//
// Included behind one of lanes_*.h.
#pragma once

#include <cfloat>
#include <cstring>

#include "formats/rounding.h"
#include "formats/search.h"

namespace gristmill::formats {
namespace {

constexpr int kGroups = 16;
constexpr int kSuperBlocks = 32 * kGroups / 256;  // at most, in one batch

inline F nearest_each(F v, F low, F high) { return (max_each(min_each(v, high), low) + 0x1.8p23f) - 0x1.8p23f; }
// 1 / v; 0 where that is no finite number.
inline F reciprocal_each(F v) {
  const F r = 1.0f / v;
  return select(less(all(FLT_MAX), abs_each(r)), all(0.0f), select(less(abs_each(v), all(0x1p-149f)), all(0.0f), r));
}

// Weights scaled by a power of two a block to a largest magnitude of 0.5..1, so that no sum can overflow, each with
// its share in the error that a search minimizes: importance * sqrt(mean x^2 + x^2). Without an importance the larger
// weights still count more, since their error reaches further into the output; with one, it replaces what is known of
// the activations.
struct Batch {
  int size;                                                // weights in a group
  int n;                                                   // groups in use; the other lanes are zero
  int joined;                                              // groups in a block: 1, 8 or 16
  alignas(64) float x[32 * kGroups], share[32 * kGroups];  // weight i of group g at kGroups * i + g
  double unit[kGroups];                                    // of each block: x * unit is the weight
  bool is_zero[kGroups];  // block below half of the smallest half: so is every weight that comes of it

  Batch(const float* weights, const float* importance, int n_groups, int group_size, int groups_in_block)
      : size(group_size), n(n_groups), joined(groups_in_block) {
    spread(weights, x);
    alignas(64) float peak[kGroups], inverse[kGroups], mean[kGroups], most[kGroups];
    for (int v = 0; v < kGroups; v += kLanes) {
      F top = all(0.0f);
      for (int i = 0; i < size; ++i) {
        float* at = x + kGroups * i + v;
        const F clamped = max_each(min_each(load(at), all(FLT_MAX)), all(-FLT_MAX));
        store(at, clamped);
        top = max_each(abs_each(clamped), top);
      }
      store(peak + v, top);
    }
    for (int g = 0; g < kGroups; g += joined) scale_block(g, peak, inverse);
    for (int v = 0; v < kGroups; v += kLanes) {
      const F factor = load(inverse + v);
      F squares = all(0.0f);
      for (int i = 0; i < size; ++i) {
        float* at = x + kGroups * i + v;
        const F scaled = load(at) * factor;
        store(at, scaled);
        squares += scaled * scaled;
      }
      store(mean + v, squares);
    }
    for (int g = 0; g < kGroups; g += joined) {
      float squares = 0.0f;
      for (int k = g; k < g + joined; ++k) squares += mean[k];
      for (int k = g; k < g + joined; ++k) mean[k] = squares / float(size * joined);
    }
    if (importance) {
      spread(importance, share);
      find_most(most);
    }
    for (int v = 0; v < kGroups; v += kLanes)
      for (int i = 0; i < size; ++i) {
        float* at = share + kGroups * i + v;
        const F value = load(x + kGroups * i + v), plain = sqrt_each(load(mean + v) + value * value);
        if (!importance) {
          store(at, plain);
          continue;
        }
        const F top = load(most + v);
        store(at, select(less(all(0.0f), top), plain * (load(at) / top), plain));
      }
  }

  // A scale in units of x as the half that block b will hold, and what that half means in units of x again. A scale
  // too small for a half becomes the smallest: codes and levels chosen afterwards make good what they can.
  uint16_t to_half(int b, float scale) const {
    const double value = double(scale) * unit[b];
    const uint16_t bits = float_to_half(value > 65504.0 ? 65504.0f : value < -65504.0 ? -65504.0f : float(value));
    return (bits & 0x7fff) == 0 && scale != 0.0f ? uint16_t(bits | 1) : bits;
  }
  float from_half(int b, uint16_t bits) const { return float(double(half_to_float(bits)) / unit[b]); }

 private:
  void spread(const float* from, float* to) const {
    const int whole = n / 4 * 4;
    for (int g = 0; g < whole; g += 4)
      for (int i = 0; i < size; i += 4) transpose_floats(from + g * size + i, size, to + kGroups * i + g, kGroups);
    for (int g = whole; g < n; ++g)
      for (int i = 0; i < size; ++i) to[kGroups * i + g] = from[g * size + i];
    for (int g = n; g < kGroups; ++g)
      for (int i = 0; i < size; ++i) to[kGroups * i + g] = 0.0f;
  }

  void scale_block(int g, const float* peak, float* inverse) {
    const int b = g / joined;
    float top = 0.0f;
    for (int k = g; k < g + joined; ++k) top = larger(top, peak[k]);
    is_zero[b] = !(top >= 0x1p-25f);
    unit[b] = 1.0;
    float factor = 0.0f;
    if (!is_zero[b]) {
      const int exponent = int(__builtin_bit_cast(uint32_t, top) >> 23) - 127 + 1;  // top is a normal number
      unit[b] = __builtin_ldexp(1.0, exponent);
      factor = float(1.0 / unit[b]);
    }
    for (int k = g; k < g + joined; ++k) inverse[k] = factor;
  }

  void find_most(float* most) const {
    for (int v = 0; v < kGroups; v += kLanes) {
      F top = all(0.0f);
      for (int i = 0; i < size; ++i) top = max_each(load(share + kGroups * i + v), top);
      store(most + v, top);
    }
    for (int g = 0; g < kGroups; g += joined) {
      float top = 0.0f;
      for (int k = g; k < g + joined; ++k) top = larger(top, most[k]);
      for (int k = g; k < g + joined; ++k) most[k] = top;
    }
  }
};

// Levels of a batch as bytes [size, kGroups] to the order of the weights, [kGroups, size].
inline void in_order(const uint8_t* levels, int size, uint8_t* q) {
  for (int i = 0; i < size; i += 16) transpose_bytes(levels + kGroups * i, q + i, size);
}

// The value of block b in each of its lanes.
inline void fill_block(float* lanes, int b, int joined, float value) {
  for (int k = b * joined; k < (b + 1) * joined; ++k) lanes[k] = value;
}

}  // namespace
}  // namespace gristmill::formats
