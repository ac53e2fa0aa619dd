// Transposes of the searches' vocabulary (lanes_generic.h) in SSE2, for all x86 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace gristmill::formats {
namespace {

inline void transpose_floats(const float* from, int from_stride, float* to, int to_stride) {
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + from_stride), c = _mm_loadu_ps(from + 2 * from_stride),
         d = _mm_loadu_ps(from + 3 * from_stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(to, a);
  _mm_storeu_ps(to + to_stride, b);
  _mm_storeu_ps(to + 2 * to_stride, c);
  _mm_storeu_ps(to + 3 * to_stride, d);
}

// Interleaving rows i and i + 8 four times brings byte r of row c to byte c of row r.
inline void transpose_bytes(const uint8_t* from, uint8_t* to, int to_stride) {
  __m128i rows[16], next[16];
  for (int i = 0; i < 16; ++i) rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i));
  for (int stage = 0; stage < 4; ++stage) {
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
      next[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
  for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_stride), rows[i]);
}

}  // namespace
}  // namespace gristmill::formats
