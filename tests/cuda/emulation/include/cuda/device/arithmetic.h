// Emulation of csrc/cuda/device/arithmetic.h.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/half.h"
#include "cuda/device/launch.h"

namespace gristmill::cuda {

inline float float_of_bits(uint32_t v) { return std::bit_cast<float>(v); }
inline uint32_t bits_of_float(float v) { return std::bit_cast<uint32_t>(v); }

inline float f16_to_f32(uint16_t v) { return half_to_float(v); }
inline uint16_t f32_to_f16(float v) { return float_to_half(v); }
inline float bf16_to_f32(uint16_t v) { return bf16_to_float(v); }
inline uint16_t f32_to_bf16(float v) { return float_to_bf16(v); }
inline uint32_t pack_f16(float low, float high) { return float_to_half(low) | uint32_t(float_to_half(high)) << 16; }
inline uint32_t subtract_f16x2(uint32_t a, uint32_t b) {
  return pack_f16(half_to_float(uint16_t(a)) - half_to_float(uint16_t(b)),
                  half_to_float(uint16_t(a >> 16)) - half_to_float(uint16_t(b >> 16)));
}
inline uint32_t multiply_f16x2(uint32_t a, uint32_t b) {
  return pack_f16(half_to_float(uint16_t(a)) * half_to_float(uint16_t(b)),
                  half_to_float(uint16_t(a >> 16)) * half_to_float(uint16_t(b >> 16)));
}
inline unsigned count_bits(uint32_t v) { return unsigned(std::popcount(v)); }

inline int round_to_int(float v) { return int(std::nearbyint(v)); }
inline int dot4(uint32_t a, uint32_t b, int sum) {
  for (int i = 0; i < 4; ++i) sum += int8_t(a >> 8 * i) * int8_t(b >> 8 * i);
  return sum;
}
inline int dot4_unsigned(uint32_t a, uint32_t b, int sum) {
  for (int i = 0; i < 4; ++i) sum += uint8_t(a >> 8 * i) * int8_t(b >> 8 * i);
  return sum;
}
inline uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = low | uint64_t(high) << 32;
  uint32_t v = 0;
  for (int i = 0; i < 4; ++i) v |= uint32_t(uint8_t(bytes >> 8 * (selector >> 4 * i & 7))) << 8 * i;
  return v;
}

inline float exp2_fast(float v) { return std::exp2(v); }

}  // namespace gristmill::cuda
