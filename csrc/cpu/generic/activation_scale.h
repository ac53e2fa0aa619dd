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
