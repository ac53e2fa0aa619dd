// How a group of activations becomes integers, the same in every instruction set.
#pragma once

#include <limits>

namespace gristmill::cpu {

// x = scale * q, q = round(x * inverse), |q| <= 16256: what two int8 planes, 128 hi + lo, can hold.
struct ActivationScale {
  float scale, inverse;
};
constexpr float kActivationMax = 16256.0f;
// Groups whose largest magnitude is below this are taken as zero: their inverse would overflow.
constexpr float kActivationSmallest = 0x1p-100f;

// peak: the largest magnitude of the group; a NaN among them must arrive as NaN. Codes have no NaN, so the scale
// carries it: what is not finite must reach the logits and be seen there.
static inline ActivationScale activation_scale(float peak) {
  if (!(peak <= std::numeric_limits<float>::max())) return {std::numeric_limits<float>::quiet_NaN(), 0.0f};
  if (peak < kActivationSmallest) return {0.0f, 0.0f};
  return {peak / kActivationMax, kActivationMax / peak};
}

}  // namespace gristmill::cpu
