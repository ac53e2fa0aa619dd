// Half-precision weights (F16, BF16) in prefill: both sides become integers of 14 bits with a scale per 32 k, and
// vpdpwssd multiplies two of them a lane where a float32 multiply-add has one. A group is one chain of sums.
//     w[k / 2][16 rows][2]      scale[group][16 rows]          the operands: tiles of four tokens, q[k / 2][4][2]
#pragma once

#include "cpu/generic/activation_scale.h"
#include "cpu/isa/avx512_vnni/multiply.h"

namespace gristmill::cpu {
namespace {

struct WordPanel {
  alignas(64) int16_t w[kPieceK / 2][kPanelRows][2];
  alignas(64) float scale[kPieceGroups][kPanelRows];
};

struct alignas(16) WordGroup {
  int16_t q[16][kTileTokens][2];
  float scale[kTileTokens];
};
struct alignas(64) WordPiece {
  WordGroup group[kPieceGroups];
};

// ---- activations ----

// 32 values in [-8191, 8191], two halves, as 16 dwords of two.
inline __m512i narrow_to_words(const __m512i (&v)[2]) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(v[0])), _mm512_cvtepi32_epi16(v[1]), 1);
}

// Row-major [4 tokens][16 dwords] -> [16][4 tokens].
inline void interleave_tokens(const __m512i (&v)[kTileTokens], int16_t (&q)[16][kTileTokens][2]) {
  const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
  const __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
  const __m512i rows[4] = {_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
                           _mm512_unpackhi_epi64(b, d)};
  for (int i = 0; i < 4; ++i) {
    const __m128i four[4] = {_mm512_castsi512_si128(rows[i]), _mm512_extracti32x4_epi32(rows[i], 1),
                             _mm512_extracti32x4_epi32(rows[i], 2), _mm512_extracti32x4_epi32(rows[i], 3)};
    for (int j = 0; j < 4; ++j) _mm_storeu_si128(reinterpret_cast<__m128i*>(q[4 * j + i]), four[j]);
  }
}

// Tile `tile` of x [n_tokens, n_cols]; pieces lie as those of tile.h.
inline void quantize_word_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  auto* pieces = reinterpret_cast<WordPiece*>(out);
  const int64_t tiles = n_tiles(n_tokens, kTileTokens);
  for (int64_t k = 0; k < n_pieces(n_cols) * kPieceK; k += 32) {
    WordGroup& group = pieces[k / kPieceK * tiles + tile].group[k % kPieceK / 32];
    __m512i tokens[kTileTokens];
    for (int t = 0; t < kTileTokens; ++t) {
      const int64_t token = tile * kTileTokens + t;
      tokens[t] = _mm512_setzero_si512();
      group.scale[t] = 0.0f;
      if (token >= n_tokens || k >= n_cols) continue;
      __m512 v[2];
      load_group(x + token * n_cols, n_cols, k, v);
      const __m512i most = _mm512_max_epu32(magnitudes(v[0]), magnitudes(v[1]));
      const ActivationScale s = activation_scale(std::bit_cast<float>(_mm512_reduce_max_epu32(most)), kWordMax);
      group.scale[t] = s.scale;
      tokens[t] = narrow_to_words({steps_of(v[0], s), steps_of(v[1], s)});
    }
    interleave_tokens(tokens, group.q);
  }
}

// ---- weights ----

// The lower and the upper weights of dwords as floats.
template <class Format>
GRISTMILL_INLINE __m512 low_floats(__m512i x) {
  if constexpr (Format::kId == formats::TypeId::F16) return low_halves(x);
  static_assert(Format::kId == formats::TypeId::F16 || Format::kId == formats::TypeId::BF16);
  return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
template <class Format>
GRISTMILL_INLINE __m512 high_floats(__m512i x) {
  return low_floats<Format>(_mm512_srli_epi32(x, 16));
}

// activation_scale() of 16 rows.
inline void scales_of(__m512 peak, __m512& scale, __m512& inverse) {
  const __m512 most = _mm512_set1_ps(kWordMax);
  const __mmask16 finite = _mm512_cmp_ps_mask(peak, _mm512_set1_ps(std::numeric_limits<float>::max()), _CMP_LE_OQ);
  const __mmask16 some = _mm512_cmp_ps_mask(peak, _mm512_set1_ps(kActivationSmallest), _CMP_GE_OQ) & finite;
  scale = _mm512_maskz_div_ps(some, peak, most);
  scale = _mm512_mask_mov_ps(_mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()), finite, scale);
  inverse = _mm512_maskz_div_ps(some, most, peak);
}

template <class F>
struct WordLayout {
  using Format = F;
  static constexpr int kBlocks = kPieceK;  // of one weight

  template <int kWeights>
  GRISTMILL_INLINE static void unpack(const Rows& rows, WordPanel& panel) {
    for (int g = 0; g < kWeights / 32; ++g) {
      __m512i c[16];
      for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
        __m512i four[4];
        columns(rows, 64 * g + 16 * i, four);
        for_constants<4>([&](auto j) GRISTMILL_LAMBDA { c[4 * i + j] = four[j]; });
      });
      // Magnitudes of both formats are ordered as integers, and a NaN is the largest.
      const __m512i magnitude = _mm512_set1_epi16(0x7fff);
      __m512i most = _mm512_and_si512(c[0], magnitude);
      for (int i = 1; i < 16; ++i) most = _mm512_max_epu16(most, _mm512_and_si512(c[i], magnitude));
      __m512 scale, inverse;
      scales_of(low_floats<Format>(_mm512_max_epu16(most, _mm512_srli_epi32(most, 16))), scale, inverse);
      _mm512_store_ps(panel.scale[g], scale);
      for_constants<16>([&](auto i) GRISTMILL_LAMBDA {
        const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(low_floats<Format>(c[i]), inverse));
        const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(high_floats<Format>(c[i]), inverse));
        _mm512_store_si512(panel.w[16 * g + i], _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16)));
      });
    }
  }
};

// ---- products ----

// sums[panel] += panel . tile over n_groups groups of 32 k.
template <int P>
inline void multiply_words(const WordPanel* panels, const WordPiece& piece, int n_groups,
                           PanelSums<kTileTokens>* sums) {
  constexpr int T = kTileTokens;
  __m512 s[P][T];
#pragma GCC unroll 12
  for (int i = 0; i < P * T; ++i) s[i / T][i % T] = _mm512_load_ps(sums[i / T][i % T]);
  for (int g = 0; g < n_groups; ++g) {
    const WordGroup& x = piece.group[g];
#pragma GCC unroll 5
    for (size_t i = 0; i < sizeof x; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(&x) + sizeof piece + i, _MM_HINT_T0);
    if constexpr (P == 3) ask_for_sums(sums + P, g);
    __m512i acc[P][T];
#pragma GCC unroll 12
    for (int i = 0; i < P * T; ++i) acc[i / T][i % T] = _mm512_setzero_si512();
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      __m512i w[P];
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) w[p] = _mm512_load_si512(panels[p].w[16 * g + i]);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m512i two = broadcast4(x.q[i][t]);
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p) acc[p][t] = _mm512_dpwssd_epi32(acc[p][t], w[p], two);
      }
    }
#pragma GCC unroll 3
    for (int p = 0; p < P; ++p) {
      const __m512 scale = _mm512_load_ps(panels[p].scale[g]);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t)
        s[p][t] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[p][t]), _mm512_mul_ps(scale, _mm512_set1_ps(x.scale[t])), s[p][t]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < P * T; ++i) _mm512_store_ps(sums[i / T][i % T], s[i / T][i % T]);
}

}  // namespace
}  // namespace gristmill::cpu
