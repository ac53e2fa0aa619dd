// Activations as 16-bit integers: x = scale * q, one scale per 32, |q| <= 16256. vpmaddwd multiplies them exactly with
// any weight of the registry: 32 products of 255 and 16256 stay below 2^31.
// A chunk is 256 values; a row is padded to whole chunks with zeros.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cpu/generic/activation_scale.h"

namespace gristmill::cpu {
namespace {

struct alignas(64) ActivationChunk {
  int16_t q[256];
  float scale[8];
  float sum16[16];  // scale * sum of q, for each 16: what minima multiply
  float sum32[8];   // likewise for each 32
};
static_assert(sizeof(ActivationChunk) == 640);

inline int64_t activation_bytes(int64_t n_cols) { return (n_cols + 255) / 256 * int64_t(sizeof(ActivationChunk)); }

inline int horizontal_sum(__m256i x) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

// n_cols is a multiple of 32, as every quantized row is.
inline void quantize_activations(const float* x, int64_t n_cols, std::byte* out) {
  ActivationChunk* chunk = reinterpret_cast<ActivationChunk*>(out);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t i = 0; i < n_cols; i += 256, ++chunk) {
    const int n_groups = n_cols - i < 256 ? int(n_cols - i) / 32 : 8;
    if (n_groups < 8) std::memset(chunk, 0, sizeof(ActivationChunk));
    for (int g = 0; g < n_groups; ++g) {
      __m256 v[4];
      // Magnitudes compared as integers: a NaN is larger than any number, becomes the scale, and is seen in every sum.
      __m256i peaks = _mm256_setzero_si256();
      for (int j = 0; j < 4; ++j) {
        v[j] = _mm256_loadu_ps(x + i + 32 * g + 8 * j);
        peaks = _mm256_max_epi32(peaks, _mm256_and_si256(_mm256_castps_si256(v[j]), magnitude));
      }
      __m128i peak = _mm_max_epi32(_mm256_castsi256_si128(peaks), _mm256_extracti128_si256(peaks, 1));
      peak = _mm_max_epi32(peak, _mm_shuffle_epi32(peak, 0x4e));
      peak = _mm_max_epi32(peak, _mm_shuffle_epi32(peak, 0xb1));
      const ActivationScale s = activation_scale(std::bit_cast<float>(_mm_cvtsi128_si32(peak)));
      const __m256 inverse = _mm256_set1_ps(s.inverse);
      float sums[2];
      for (int j = 0; j < 2; ++j) {
        const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(v[2 * j], inverse));
        const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(v[2 * j + 1], inverse));
        const __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        _mm256_store_si256(reinterpret_cast<__m256i*>(chunk->q + 32 * g + 16 * j), q);
        sums[j] = float(horizontal_sum(_mm256_add_epi32(a, b)));
        chunk->sum16[2 * g + j] = s.scale * sums[j];
      }
      chunk->sum32[g] = s.scale * (sums[0] + sums[1]);
      chunk->scale[g] = s.scale;
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu
