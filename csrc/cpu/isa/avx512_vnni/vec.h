// The vocabulary of generic/ with 16 float lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace gristmill::cpu {
namespace {

struct Avx512Vec {
  using T = __m512;
  static constexpr int N = 16;
  // Query groups and blocks whose sums fit the 32 registers beside what they are multiplied with.
  static constexpr int kQueries = 6, kScoreBlocks = 4, kValueVectors = 4, kDotRows = 4, kDotTokens = 4, kGemmPanels = 3,
                       kGemmTokens = 8;

  static T zero() { return _mm512_setzero_ps(); }
  static T set(float x) { return _mm512_set1_ps(x); }
  static T load(const float* p) { return _mm512_loadu_ps(p); }
  static T load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, T x) { _mm512_storeu_ps(p, x); }
  static void store_n(float* p, T x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static T add(T a, T b) { return _mm512_add_ps(a, b); }
  static T sub(T a, T b) { return _mm512_sub_ps(a, b); }
  static T mul(T a, T b) { return _mm512_mul_ps(a, b); }
  static T div(T a, T b) { return _mm512_div_ps(a, b); }
  static T fma(T a, T b, T c) { return _mm512_fmadd_ps(a, b, c); }
  static T max(T a, T b) { return _mm512_max_ps(a, b); }
  static T min(T a, T b) { return _mm512_min_ps(a, b); }
  static T round(T x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static T scale_pow2(T x, T n) { return _mm512_scalef_ps(x, n); }
  static float sum(T x) { return _mm512_reduce_add_ps(x); }
  static float maximum(T x) { return _mm512_reduce_max_ps(x); }
  static T first_n(T x, int n) { return _mm512_maskz_mov_ps(first(n), x); }
  static T from_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static T set_half(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_set1_epi16(int16_t(*p))); }
  static T from_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  // Byte i of each group of four.
  template <int i>
  static T from_int8_of_four(const int8_t* p) {
    const __m512i fours = _mm512_loadu_si512(p);
    return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(fours, 24 - 8 * i), 24));
  }

  // 16 rows x 16 lanes.
  static void transpose(T (&r)[16]) {
    T t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
      for (int j = 0; j < 2; ++j) {
        r[i + 2 * j] = unpack_pairs<false>(t[i + j], t[i + 2 + j]);
        r[i + 2 * j + 1] = unpack_pairs<true>(t[i + j], t[i + 2 + j]);
      }
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
      t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
      r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
      r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
      r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
      r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
    }
  }

 private:
  template <bool kHigh>
  static T unpack_pairs(T a, T b) {
    const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
    return _mm512_castpd_ps(kHigh ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
  }
  static __mmask16 first(int n) {
    return n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1);
  }
};

}  // namespace
}  // namespace gristmill::cpu
