// Weights ready to multiply: 256 k of 8 rows, so that the 8 lanes of a register are 8 rows and nothing has to be added
// across lanes. Rows are turned while they are packed still (rows.h): a nibble moves half as often as a byte.
//
//   bytes     q[k / 4][8 rows][4 k]       for vpmaddubsw, whose second factor is signed and may lie in memory
//   words     q[k / 2][8 rows][2 k]       for vpmaddwd
//   beside    scale[group][8 rows], minimum[group][8 rows]
#pragma once

#include "cpu/isa/avx2/rows.h"

namespace gristmill::cpu {
namespace {

constexpr int kPieceK = 256;

struct PanelScales {
  alignas(32) float scale[kPieceK / 16][kPanelRows];
  alignas(32) float minimum[kPieceK / 16][kPanelRows];

  GRISTMILL_INLINE void set_scale(int group, __m256 x) { _mm256_store_ps(scale[group], x); }
  GRISTMILL_INLINE void set_minimum(int group, __m256 x) { _mm256_store_ps(minimum[group], x); }
};

// An integer in both 16-bit halves of its lane, as vpmaddwd wants a factor of sums of 16 bits.
inline __m256i in_both_halves(__m256i x) { return _mm256_blend_epi16(x, _mm256_slli_epi32(x, 16), 0xaa); }

// Activations are the unsigned factor, 128 + their value, so sums begin at what takes the 128 away. For activations of
// magnitude 127 and codes c of a group,
//     one vpmaddubsw     2 * 255 * |c|          <= 16320 for |c| <= 32: nothing saturates
//     a group's sums     kGroup / 2 * 127 * |c| <= 32512 for |c| <= 16 of 32 and |c| <= 32 of 16
// Between those vpaddw may wrap around; where the end fits, it is right all the same.
template <class Layout>
struct BytePanel : PanelScales {
  static constexpr int kGroup = Layout::kGroup, kGroups = kPieceK / kGroup;
  static_assert(Layout::kMaxCode <= 32 && kGroup / 2 * 127 * Layout::kMaxCode <= 32767);

  alignas(32) int8_t q[kPieceK / 4][kPanelRows][4];
  alignas(32) int16_t start[kGroups][kPanelRows][2];
  alignas(32) int16_t factor[kGroups][kPanelRows][2];

  template <class I>
  GRISTMILL_INLINE void set_u(I i, __m256i u) {
    store32(q[i], Layout::kZero ? _mm256_sub_epi8(u, bytes(Layout::kZero)) : u);
  }
  GRISTMILL_INLINE void set_factor(int group, __m256i x) { store32(factor[group], in_both_halves(x)); }
  GRISTMILL_INLINE void finish() {
    for (int g = 0; g < kGroups; ++g) {
      __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
      for (int i = g * kGroup / 4; i < (g + 1) * kGroup / 4; ++i)
        sum = _mm256_sub_epi16(sum, _mm256_maddubs_epi16(bytes(1), load32(q[i])));
      store32(start[g], _mm256_slli_epi16(sum, 7));
    }
  }
};

// Where the two words of four k lie: even k of two fours, then their odd k. Masks and shifts make that of bytes.
constexpr int word_index(int four, int odd) { return 4 * (four / 2) + 2 * odd + four % 2; }

// Codes times their integer factor, or without one 8 bits and a sign: sums of 32 products with 16256 fit 32 bits where
// |q| <= 4096.
template <class Layout>
struct WordPanel : PanelScales {
  alignas(32) int16_t q[kPieceK / 2][kPanelRows][2];
  alignas(32) int16_t factor[kPieceK / Layout::kGroup][kPanelRows][2];

  template <class I>
  GRISTMILL_INLINE void set_u(I i, __m256i u) {
    const __m256i zero = _mm256_set1_epi16(Layout::kZero);
    __m256i even = _mm256_sub_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)), zero);
    __m256i odd = _mm256_sub_epi16(_mm256_srli_epi16(u, 8), zero);
    if constexpr (Layout::kSuper) {
      const __m256i by = load32(factor[i * 4 / Layout::kGroup]);
      even = _mm256_mullo_epi16(even, by);
      odd = _mm256_mullo_epi16(odd, by);
    }
    store32(q[word_index(i, 0)], even);
    store32(q[word_index(i, 1)], odd);
  }
  GRISTMILL_INLINE void set_factor(int group, __m256i x) { store32(factor[group], in_both_halves(x)); }
  GRISTMILL_INLINE void finish() {}
};

}  // namespace
}  // namespace gristmill::cpu
