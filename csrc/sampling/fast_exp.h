// e^x for x <= 0 in float32, branch-free so that compilers vectorize a loop over it. Uses only correctly rounded
// operations, so that (unlike the C library's expf) it gives the same bits on every platform.
#pragma once

#include <bit>
#include <cstdint>

namespace gristmill::sampling {

// Below this, e^x is under float32's smallest normal number and counts as zero.
inline constexpr float kExpFloor = -87.0f;

// x = n ln 2 + r with |r| <= ln 2 / 2, and e^x = 2^n e^r with the Taylor series of e^r to degree 7 (truncation below
// 6e-9). Relative error below 2.5e-7; e^0 is exactly 1.
inline float exp_nonpositive(float x) {
  constexpr float kRound = 0x1.8p23f;  // adding it rounds a small float to an integer, kept in the low mantissa bits
  constexpr float kLn2High = 0x1.62e4p-1f, kLn2Low = 0x1.7f7d1cp-20f;  // kLn2High * n is exact for |n| < 2^8
  // Clamping by integers (the order of positive floats is that of their bits) and masking by a sign: a compiler would turn
  // comparisons of floats into branches, and then not vectorize.
  const int32_t magnitude = std::bit_cast<int32_t>(x) & 0x7fffffff;
  const int32_t floor = std::bit_cast<int32_t>(-kExpFloor);
  const float clamped = -std::bit_cast<float>(magnitude < floor ? magnitude : floor);
  const uint32_t zero_mask = 0u - (static_cast<uint32_t>(floor - magnitude) >> 31);
  const float shifted = clamped * 0x1.715476p0f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t exponent = std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kRound) + 127u;
  const float result = p * std::bit_cast<float>(exponent << 23);
  return std::bit_cast<float>(std::bit_cast<uint32_t>(result) & ~zero_mask);
}

}  // namespace gristmill::sampling
