// Activations as two int8 planes: x = scale * (128 hi + lo), one scale per 32, |128 hi + lo| <= 16256, so 15 bits a
// value. vpdpbusd multiplies both planes with the same weight register; a shift by 7 joins the sums exactly. (One scale
// a row would save a multiplication per 64 weights, but a single large channel would then blur all others.)
//   [n chunks of 64 hi, 64 lo] [n x 16 lane scales] [sums of each 16] [sums of each 32] [scales]   padded with zeros
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>

#include "cpu/generic/activation_scale.h"

namespace gristmill::cpu {
namespace {

struct ActivationRow {
  const int8_t* planes;     // chunk c: hi at 128 c, lo at 128 c + 64
  const float* lane_scale;  // of chunk c at 16 c: eight times the scale of its first 32, eight times of its second
  const float* sum16;       // scale * sum of (128 hi + lo), for each 16
  const float* sum32;
  const float* scale;  // for each 32

  static int64_t chunks(int64_t n_cols) { return (n_cols + 63) / 64; }
  // Whole lines, and one more because sums are read 16 at a time.
  static int64_t bytes(int64_t n_cols) { return (chunks(n_cols) * (128 + 4 * (16 + 4 + 2 + 2)) + 63) / 64 * 64 + 64; }
  static ActivationRow at(const std::byte* p, int64_t n_cols) {
    const int64_t n = chunks(n_cols);
    const float* floats = reinterpret_cast<const float*>(p + 128 * n);
    return {reinterpret_cast<const int8_t*>(p), floats, floats + 16 * n, floats + 20 * n, floats + 22 * n};
  }
};

inline int64_t activation_bytes(int64_t n_cols) { return ActivationRow::bytes(n_cols); }

inline __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1);
}

inline void quantize_activations(const float* x, int64_t n_cols, std::byte* out) {
  const ActivationRow row = ActivationRow::at(out, n_cols);
  int8_t* planes = const_cast<int8_t*>(row.planes);
  float *lane_scale = const_cast<float*>(row.lane_scale), *scales = const_cast<float*>(row.scale);
  float *sum16 = const_cast<float*>(row.sum16), *sum32 = const_cast<float*>(row.sum32);
  const int64_t padded = ActivationRow::chunks(n_cols) * 64;
  for (int64_t i = 0; i < padded; i += 32) {
    const __m512 v[2] = {_mm512_maskz_loadu_ps(first_lanes(n_cols - i), x + i),
                         _mm512_maskz_loadu_ps(first_lanes(n_cols - i - 16), x + i + 16)};
    // Magnitudes compared as integers: a NaN is larger than any number, becomes the scale, and is seen in every sum.
    const __m512i peaks =
        _mm512_max_epu32(_mm512_castps_si512(_mm512_abs_ps(v[0])), _mm512_castps_si512(_mm512_abs_ps(v[1])));
    const ActivationScale s = activation_scale(std::bit_cast<float>(_mm512_reduce_max_epu32(peaks)));
    float sums[2];
    for (int j = 0; j < 2; ++j) {
      const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v[j], _mm512_set1_ps(s.inverse)));
      const __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);
      const __m512i lo = _mm512_sub_epi32(q, _mm512_slli_epi32(hi, 7));
      int8_t* at = planes + i / 64 * 128 + i % 64 + 16 * j;
      _mm_store_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(hi));
      _mm_store_si128(reinterpret_cast<__m128i*>(at + 64), _mm512_cvtepi32_epi8(lo));
      sums[j] = float(_mm512_reduce_add_epi32(q));
      sum16[i / 16 + j] = s.scale * sums[j];
    }
    sum32[i / 32] = s.scale * (sums[0] + sums[1]);
    scales[i / 32] = s.scale;
    _mm256_storeu_ps(lane_scale + i / 4, _mm256_set1_ps(s.scale));
  }
}

}  // namespace
}  // namespace gristmill::cpu
