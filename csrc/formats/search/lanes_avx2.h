// The vocabulary of the searches (lanes_generic.h) in AVX2: eight floats.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "formats/search/transpose_x86.h"

namespace gristmill::formats {
namespace {

constexpr int kLanes = 8;
typedef float F __attribute__((vector_size(32)));
typedef int32_t M __attribute__((vector_size(32)));

using I = M;

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline F all(float v) { return _mm256_set1_ps(v); }
inline M less(F a, F b) { return M(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
inline M at_least(F a, F b) { return M(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline M both(M a, M b) { return a & b; }
inline F select(M m, F a, F b) { return _mm256_blendv_ps(b, a, __m256(m)); }
inline F min_each(F a, F b) { return _mm256_min_ps(a, b); }
inline F max_each(F a, F b) { return _mm256_max_ps(a, b); }
inline F abs_each(F v) { return F(M(v) & 0x7fffffff); }
inline F sqrt_each(F v) { return _mm256_sqrt_ps(v); }
inline float lowest_of(F v) {
  __m128 a = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_min_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_min_ss(a, _mm_shuffle_ps(a, a, 1)));
}
inline float highest_of(F v) {
  __m128 a = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  a = _mm_max_ps(a, _mm_movehl_ps(a, a));
  return _mm_cvtss_f32(_mm_max_ss(a, _mm_shuffle_ps(a, a, 1)));
}
inline void store_bytes(uint8_t* p, F v) {
  const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                       0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_cvttps_epi32(v), low);
  const int32_t halves[2] = {_mm256_cvtsi256_si32(bytes), _mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1))};
  std::memcpy(p, halves, sizeof halves);
}

inline I add_where(M m, I v, int n) { return v + (m & (n - I{})); }
inline F to_float(I v) { return _mm256_cvtepi32_ps(__m256i(v)); }
inline F pick(const float* table, I v) {
  const F low = _mm256_permutevar8x32_ps(load(table), __m256i(v));
  const F high = _mm256_permutevar8x32_ps(load(table + 8), __m256i(v));
  return _mm256_blendv_ps(low, high, __m256(v << 28));  // bit 3, as the sign
}

}  // namespace
}  // namespace gristmill::formats
