// What attention to bytes rounds: queries and weights as integers in two planes of bytes, 256 hi + lo.
//   queries  16 bits with a scale for each 32 dimensions
//   weights  what a position weighs times its value's scale, in 16 bits without a sign, with a scale for a tile's
//            64 positions and 32 dimensions
// By 2^-16 and 2^-17 of the largest that shares a scale: Q8_0 itself rounds by 2^-8 of it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "cpu/generic/constants.h"

namespace gristmill::cpu {
namespace {

// The largest codes whose planes are bytes: of a query, hi and lo have a sign, and lo may be 127 with hi at its most.
constexpr float kMostQuery = 127 * 256, kMostWeight = 65535;
constexpr float kNothing = 1e-30f;  // has no inverse that a code could be made with

// Of floats without a sign, as bits, since then a NaN is the largest.
GRISTMILL_INLINE float largest(__m512i bits) {
  return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(int(_mm512_reduce_max_epu32(bits)))));
}

struct QueryCodes {
  __m128i hi[2], lo[2];
  float scale;
  int32_t sum;  // of the codes
};

// Of 32 dimensions.
inline QueryCodes round_query(const float* q) {
  const __m512 x[2] = {_mm512_loadu_ps(q), _mm512_loadu_ps(q + 16)};
  const float top =
      largest(_mm512_max_epu32(_mm512_castps_si512(_mm512_abs_ps(x[0])), _mm512_castps_si512(_mm512_abs_ps(x[1]))));
  const __m512 inverse = _mm512_set1_ps(top > kNothing ? kMostQuery / top : 0.0f);
  // What is not finite has no codes. The scale alone carries it, an infinity as a NaN.
  const __mmask16 finite = top - top == 0.0f ? 0xffff : 0;
  QueryCodes codes{{}, {}, top / kMostQuery + (top - top), 0};
  for (int half = 0; half < 2; ++half) {
    const __m512i code = _mm512_maskz_cvtps_epi32(finite, _mm512_mul_ps(x[half], inverse));
    const __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
    codes.hi[half] = _mm512_cvtepi32_epi8(hi);
    codes.lo[half] = _mm512_cvtepi32_epi8(_mm512_sub_epi32(code, _mm512_slli_epi32(hi, 8)));
    codes.sum += _mm512_reduce_add_epi32(code);
  }
  return codes;
}

// The codes of 64 positions' weights p, and their scale.
GRISTMILL_INLINE float round_weights(const float* p, const __m512 (&value_scale)[4], __m512i (&code)[4]) {
  __m512 x[4];
  for (int i = 0; i < 4; ++i) x[i] = _mm512_mul_ps(_mm512_loadu_ps(p + 16 * i), value_scale[i]);
  const auto bits = [&](int i) { return _mm512_castps_si512(x[i]); };
  const float top = largest(_mm512_max_epu32(_mm512_max_epu32(bits(0), bits(1)), _mm512_max_epu32(bits(2), bits(3))));
  const __m512 inverse = _mm512_set1_ps(top > kNothing ? kMostWeight / top : 0.0f);
  for (int i = 0; i < 4; ++i) code[i] = _mm512_cvtps_epi32(_mm512_mul_ps(x[i], inverse));
  return top / kMostWeight;
}

// What products with both planes are together.
GRISTMILL_INLINE __m512 joined(__m512i hi, __m512i lo) {
  return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(hi, 8), lo));
}

}  // namespace
}  // namespace gristmill::cpu
