// Activations as two int8 planes with one scale a row: x = scale * (128 hi + lo), |128 hi + lo| <= 16256. vpdpbusd
// multiplies both planes with the same weight register; a shift by 7 joins the sums exactly. Fifteen bits of the row's
// largest value are enough that one scale serves the whole row (docs/performance.md has the divergences), so that the
// inner loops know no activation scale at all.
//   [64 bytes: scale] [n chunks of 64 hi, 64 lo] [sums of each 16] [sums of each 32]      n_cols padded to 64 with zeros
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "cpu/generic/activation_scale.h"

namespace gristmill::cpu {
namespace {

struct ActivationRow {
  float scale;
  const int8_t* planes;  // chunk c: hi at 128 c, lo at 128 c + 64
  const float* sum16;    // sums of 128 hi + lo, exact in float32
  const float* sum32;

  static int64_t chunks(int64_t n_cols) { return (n_cols + 63) / 64; }
  static int64_t bytes(int64_t n_cols) {
    const int64_t n = chunks(n_cols);
    return (64 + n * (128 + 4 * 4 + 2 * 4) + 63) / 64 * 64 + 64;  // one line more: sums are read 16 at a time
  }
  static ActivationRow at(const std::byte* p, int64_t n_cols) {
    const int64_t n = chunks(n_cols);
    const std::byte* sums = p + 64 + 128 * n;
    return {*reinterpret_cast<const float*>(p), reinterpret_cast<const int8_t*>(p + 64),
            reinterpret_cast<const float*>(sums), reinterpret_cast<const float*>(sums + 16 * n)};
  }
};

inline int64_t activation_bytes(int64_t n_cols) { return ActivationRow::bytes(n_cols); }

inline __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1);
}

inline void quantize_activations(const float* x, int64_t n_cols, std::byte* out) {
  const int64_t padded = ActivationRow::chunks(n_cols) * 64;
  // Magnitudes compared as integers: a NaN is larger than any number, becomes the scale, and is seen in every sum.
  __m512i top = _mm512_setzero_si512();
  for (int64_t i = 0; i < n_cols; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(n_cols - i), x + i);
    top = _mm512_max_epu32(top, _mm512_castps_si512(_mm512_abs_ps(v)));
  }
  const ActivationScale s = activation_scale(std::bit_cast<float>(_mm512_reduce_max_epu32(top)));
  const __m512 inverse = _mm512_set1_ps(s.inverse);
  *reinterpret_cast<float*>(out) = s.scale;
  const ActivationRow row = ActivationRow::at(out, n_cols);
  int8_t* planes = const_cast<int8_t*>(row.planes);
  float *sum16 = const_cast<float*>(row.sum16), *sum32 = const_cast<float*>(row.sum32);
  for (int64_t i = 0; i < padded; i += 16) {
    const __m512 v = _mm512_maskz_loadu_ps(first_lanes(n_cols - i), x + i);
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v, inverse));
    const __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);
    const __m512i lo = _mm512_sub_epi32(q, _mm512_slli_epi32(hi, 7));
    int8_t* at = planes + i / 64 * 128 + i % 64;
    _mm_store_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(hi));
    _mm_store_si128(reinterpret_cast<__m128i*>(at + 64), _mm512_cvtepi32_epi8(lo));
    sum16[i / 16] = float(_mm512_reduce_add_epi32(q));
    if (i / 16 % 2 == 1) sum32[i / 32] = sum16[i / 16 - 1] + sum16[i / 16];
  }
}

}  // namespace
}  // namespace gristmill::cpu
