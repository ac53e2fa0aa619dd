// Half-precision weights (F16, BF16) in prefill: both sides become integers of 14 bits with a scale per 32 k, and
// vpdpwssd multiplies two of them a lane where a float32 multiply-add has one. A group is one chain of sums.
//     w[k / 2][16 rows][2]      scale[group][16 rows]          the operands: tiles of four tokens, q[k / 2][4][2]
#pragma once

#include "cpu/isa/avx512_vnni/multiply.h"
#include "cpu/isa/avx512_vnni/quantize.h"

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

// 16 k of four tokens, in [-8191, 8191] -> [k / 2][token][2].
inline void store_words(const __m512i (&q)[kTileTokens], int16_t (*to)[kTileTokens][2]) {
  const __m512 a = _mm512_castsi512_ps(_mm512_packs_epi32(q[0], q[1])),
               b = _mm512_castsi512_ps(_mm512_packs_epi32(q[2], q[3]));
  // A lane of 128 bits has two dwords of each token: those of k / 2 = 0, 2, 4, 6 and of 1, 3, 5, 7.
  const __m512i even = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88)),
                odd = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd));
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  _mm512_storeu_si512(to, _mm512_permutex2var_epi64(even, low, odd));
  _mm512_storeu_si512(to + 4, _mm512_permutex2var_epi64(even, high, odd));
}

// Tile `tile` of x [n_tokens, n_cols], which may be any number; pieces lie as those of tile.h.
inline void quantize_word_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  const TileRows rows(x, n_cols, n_tokens, tile);
  auto* pieces = reinterpret_cast<WordPiece*>(out) + tile;
  const int64_t tiles = n_tiles(n_tokens, kTileTokens);
  for (int64_t k = 0; k < n_pieces(n_cols) * kPieceK; k += 32) {
    WordGroup& group = pieces[k / kPieceK * tiles].group[k % kPieceK / 32];
    __m512 v[kTileTokens][2];
    if (k + 32 <= n_cols) {
      rows.load(k, v);
    } else {
      rows.load_part(k, n_cols, v);
    }
    const TileScales s = tile_scales(_mm_castsi128_ps(tile_peaks(v).first), kWordMax);
    alignas(16) float inverse[kTileTokens];
    _mm_store_ps(inverse, s.inverse);
    _mm_storeu_ps(group.scale, s.scale);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i q[kTileTokens];
#pragma GCC unroll 4
      for (int t = 0; t < kTileTokens; ++t) q[t] = steps_of(v[t][half], inverse[t]);
      store_words(q, group.q + 8 * half);
    }
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
  GRISTMILL_INLINE static void unpack(Rows& rows, WordPanel& panel) {
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
