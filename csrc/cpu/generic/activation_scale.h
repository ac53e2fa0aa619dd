// How a group of activations becomes integers, the same in every instruction set.
#pragma once

#include <limits>

namespace gristmill::cpu {

// x = scale * q, q = round(x * inverse), |q| <= max.
struct ActivationScale {
  float scale, inverse;
};
// What two int8 planes, 128 hi + lo, can hold, and one.
constexpr float kActivationMax = 16256.0f, kActivationMax8 = 127.0f;
// Half-precision weights and their activations as integers of 14 bits: what 32 products add up to still fits 32 bits.
// A weight of F16 is off by at most half a unit in its last place while it is above 1/4 of its group's largest, one of
// BF16 above 1/32.
constexpr int kWordBits = 14;
constexpr float kWordMax = 8191.0f;
static_assert(32.0 * kWordMax * kWordMax < 2147483648.0);
// Groups whose largest magnitude is below this are taken as zero: their inverse would overflow.
constexpr float kActivationSmallest = 0x1p-100f;

// peak: the largest magnitude of the group; a NaN among them must arrive as NaN. Codes have no NaN, so the scale
// carries it: what is not finite must reach the logits and be seen there.
static inline ActivationScale activation_scale(float peak, float max = kActivationMax) {
  if (!(peak <= std::numeric_limits<float>::max())) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  if (peak < kActivationSmallest) return {0.0f, 0.0f};
  return {peak / max, max / peak};
}

}  // namespace gristmill::cpu
