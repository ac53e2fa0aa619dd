// Activations as two int8 planes: x = scale * (128 hi + lo), one scale per 32, |128 hi + lo| <= 16256, so 15 bits a
// value. vpdpbusd multiplies both planes with the same weight register; a shift by 7 joins the sums exactly.
// A chunk is 64 values; a row is padded to whole chunks with zeros.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <limits>

namespace gristmill::cpu {
namespace {

struct alignas(64) ActivationChunk {
  int8_t hi[64], lo[64];
  float lane_scale[16];  // scale of the first 32 in lanes 0-7, of the second in 8-15: as vpdpbusd's lanes lie
  float sum16[4];        // scale * sum of (128 hi + lo), for each 16
  float sum32[2];        // likewise for each 32
  float scale[2];
  float unused[8];
};
static_assert(sizeof(ActivationChunk) == 256);

inline int64_t activation_bytes(int64_t n_cols) { return (n_cols + 63) / 64 * int64_t(sizeof(ActivationChunk)); }

inline void quantize_activations(const float* x, int64_t n_cols, std::byte* out) {
  ActivationChunk* chunk = reinterpret_cast<ActivationChunk*>(out);
  const __m512 sign = _mm512_set1_ps(-0.0f);
  for (int64_t i = 0; i < n_cols; i += 64, ++chunk) {
    for (int half = 0; half < 2; ++half) {
      const int64_t at = i + 32 * half;
      const int n = int(n_cols - at);
      const auto mask = [](int count) {
        return count >= 16 ? __mmask16(0xffff) : count <= 0 ? __mmask16(0) : __mmask16((1u << count) - 1);
      };
      const __m512 a = _mm512_maskz_loadu_ps(mask(n), x + at), b = _mm512_maskz_loadu_ps(mask(n - 16), x + at + 16);
      const float max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_andnot_ps(sign, a), _mm512_andnot_ps(sign, b)));
      // Codes have no NaN, so the scale carries it: what is not finite must reach the logits and be seen there.
      const bool finite = max <= std::numeric_limits<float>::max() && _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) == 0;
      const __mmask16 keep = finite ? 0xffff : 0;
      // Below 2^-114 the quotient would overflow; such a group counts as zero.
      const __m512 inverse = _mm512_set1_ps(max > 0x1p-114f ? 16256.0f / max : 0.0f);
      const float scale = finite ? max / 16256.0f : std::numeric_limits<float>::quiet_NaN();
      const __m512i q[2] = {_mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, a, inverse)),
                            _mm512_cvtps_epi32(_mm512_maskz_mul_ps(keep, b, inverse))};
      int sums[2];
      for (int j = 0; j < 2; ++j) {
        const __m512i hi = _mm512_srai_epi32(_mm512_add_epi32(q[j], _mm512_set1_epi32(64)), 7);
        const __m512i lo = _mm512_sub_epi32(q[j], _mm512_slli_epi32(hi, 7));
        _mm_store_si128(reinterpret_cast<__m128i*>(chunk->hi + 32 * half + 16 * j), _mm512_cvtepi32_epi8(hi));
        _mm_store_si128(reinterpret_cast<__m128i*>(chunk->lo + 32 * half + 16 * j), _mm512_cvtepi32_epi8(lo));
        sums[j] = _mm512_reduce_add_epi32(q[j]);
        chunk->sum16[2 * half + j] = scale * float(sums[j]);
      }
      chunk->sum32[half] = scale * float(sums[0] + sums[1]);
      chunk->scale[half] = scale;
      _mm256_store_ps(chunk->lane_scale + 8 * half, _mm256_set1_ps(scale));
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu
