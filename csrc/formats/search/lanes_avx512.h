// The vocabulary of the searches (lanes_generic.h) in AVX-512 F and BW: sixteen floats, comparisons in mask registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "formats/search/transpose_x86.h"

namespace gristmill::formats {
namespace {

constexpr int kLanes = 16;
typedef float F __attribute__((vector_size(64)));
using M = __mmask16;

typedef int32_t I __attribute__((vector_size(64)));

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline F all(float v) { return _mm512_set1_ps(v); }
inline M less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
inline M at_least(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline M both(M a, M b) { return M(a & b); }
inline F select(M m, F a, F b) { return _mm512_mask_blend_ps(m, b, a); }
inline F min_each(F a, F b) { return _mm512_min_ps(a, b); }
inline F max_each(F a, F b) { return _mm512_max_ps(a, b); }
inline F abs_each(F v) { return _mm512_abs_ps(v); }
inline F sqrt_each(F v) { return _mm512_sqrt_ps(v); }
inline float lowest_of(F v) { return _mm512_reduce_min_ps(v); }
inline float highest_of(F v) { return _mm512_reduce_max_ps(v); }
inline void store_bytes(uint8_t* p, F v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v)));
}

inline I add_where(M m, I v, int n) {
  return I(_mm512_mask_add_epi32(__m512i(v), m, __m512i(v), _mm512_set1_epi32(n)));
}
inline F to_float(I v) { return _mm512_cvtepi32_ps(__m512i(v)); }
inline F pick(const float* table, I v) { return _mm512_permutexvar_ps(__m512i(v), load(table)); }

}  // namespace
}  // namespace gristmill::formats
