// Conversions and byte operations: one instruction each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "cuda/device/launch.h"

namespace gristmill::cuda {

DEVICE float float_of_bits(uint32_t v) { return __uint_as_float(v); }
DEVICE uint32_t bits_of_float(float v) { return __float_as_uint(v); }

// Exact one way, to nearest even the other; beyond the range of a half lies infinity.
DEVICE float f16_to_f32(uint16_t v) { return __half2float(__ushort_as_half(v)); }
DEVICE uint16_t f32_to_f16(float v) { return __half_as_ushort(__float2half_rn(v)); }
DEVICE float bf16_to_f32(uint16_t v) { return __uint_as_float(uint32_t(v) << 16); }
DEVICE uint16_t f32_to_bf16(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
// Two halves in one register, `low` in the low bits.
DEVICE uint32_t pack_f16(float low, float high) {
  uint32_t v;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
  return v;
}
// Of both halves of the registers.
DEVICE uint32_t subtract_f16x2(uint32_t a, uint32_t b) {
  uint32_t v;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
DEVICE uint32_t multiply_f16x2(uint32_t a, uint32_t b) {
  uint32_t v;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
  return v;
}
DEVICE unsigned count_bits(uint32_t v) { return unsigned(__popc(v)); }

// Integer nearest to v, ties to even.
DEVICE int round_to_int(float v) { return __float2int_rn(v); }
// sum + the four products of signed bytes; of a's unsigned and b's signed bytes.
DEVICE int dot4(uint32_t a, uint32_t b, int sum) { return __dp4a(int(a), int(b), sum); }
DEVICE int dot4_unsigned(uint32_t a, uint32_t b, int sum) {
  int d;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(sum));
  return d;
}
// Byte i of the result is byte (selector >> 4 i) & 7 of the eight bytes of low, then high.
DEVICE uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

// 2^v; relative error about 2^-22.
DEVICE float exp2_fast(float v) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
  return y;
}

}  // namespace gristmill::cuda
