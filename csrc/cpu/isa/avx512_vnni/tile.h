// Activations for prefill: tiles of four tokens, cut into pieces of 256 and groups of 32 k with a scale a token.
//   8 bit   one int8 plane; a group's value that stands out lends the scale to the others and keeps its upper bits in
//           a list beside (outliers.h)
//   15 bit  two planes, 128 hi + lo, as in decoding (activations.h)
// Four k of a token lie side by side, the four tokens one after the other: the operand that vpdpbusd broadcasts.
//   piece 0 of tile 0, piece 0 of tile 1, ...; piece 1 of tile 0, ...        padded with zeros
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "cpu/generic/activation_scale.h"
#include "cpu/generic/outliers.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

constexpr int kTileTokens = 4;
constexpr int kPieceK = 256;
constexpr int kPieceGroups = kPieceK / 32;

template <int kPlanes>
struct alignas(16) TileGroup {
  int8_t q[kPlanes][8][kTileTokens][4];
  float scale[kTileTokens];
  float sum[kTileTokens];                 // scale * sum of values, without what the outliers list
  int16_t isum[kPlanes][kTileTokens][2];  // sums of a plane's first and second 16
};

// Upper bits that q lacks: the value is scale * (128 high + q).
struct TileOutlier {
  uint8_t token, k;
  int8_t high;
};

template <int kPlanes>
struct alignas(64) TilePiece {
  TileGroup<kPlanes> group[kPieceGroups];
  int n_outliers;
  TileOutlier outlier[kPlanes == 1 ? kTileTokens * kMaxOutliers : 1];
};

inline int64_t n_tiles(int64_t n_tokens) { return (n_tokens + kTileTokens - 1) / kTileTokens; }
inline int64_t n_pieces(int64_t n_cols) { return (n_cols + kPieceK - 1) / kPieceK; }

// Row-major [tokens][8 dwords] -> [8][tokens].
inline void interleave_tokens(const __m256i (&v)[kTileTokens], int8_t (&q)[8][kTileTokens][4]) {
  const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  const __m256i rows[4] = {_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d),
                           _mm256_unpackhi_epi64(b, d)};
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q[i]), _mm256_castsi256_si128(rows[i]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q[i + 4]), _mm256_extracti128_si256(rows[i], 1));
  }
}

// Sums over k of 16 values a token: four dword rows of [4 tokens][4 k].
inline __m128i sum_of_16(const int8_t (*q)[kTileTokens][4]) {
  const __m512i s =
      _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), _mm512_loadu_si512(static_cast<const void*>(q)));
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64(s, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// 32 values as integers: v[0] and v[1] narrowed.
inline __m256i narrow(const __m512i (&v)[2]) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(v[0])), _mm512_cvtepi32_epi8(v[1]), 1);
}

template <int kPlanes>
inline void finish_group(const __m256i (&planes)[kPlanes][kTileTokens], TileGroup<kPlanes>& g) {
  __m128i sum = _mm_setzero_si128();
  for (int p = 0; p < kPlanes; ++p) {
    interleave_tokens(planes[p], g.q[p]);
    const __m128i first = sum_of_16(g.q[p]), second = sum_of_16(g.q[p] + 4);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(g.isum[p]), _mm_blend_epi16(first, _mm_slli_epi32(second, 16), 0xaa));
    sum = _mm_add_epi32(_mm_slli_epi32(sum, 7), _mm_add_epi32(first, second));
  }
  _mm_storeu_ps(g.sum, _mm_mul_ps(_mm_cvtepi32_ps(sum), _mm_loadu_ps(g.scale)));
}

// 32 values of a row of n_cols from k on; beyond its end they are zero.
inline void load_group(const float* x, int64_t n_cols, int64_t k, __m512 (&v)[2]) {
  const auto lanes = [](int64_t n) { return __mmask16(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); };
  v[0] = _mm512_maskz_loadu_ps(lanes(n_cols - k), x + k);
  v[1] = _mm512_maskz_loadu_ps(lanes(n_cols - k - 16), x + k + 16);
}

// Magnitudes as integers: a NaN is larger than any number, and becomes the scale.
inline __m512i magnitudes(__m512 v) { return _mm512_castps_si512(_mm512_abs_ps(v)); }

// The largest magnitude of each group, the second largest, and which of the 32 the largest is.
inline GroupPeak group_peak(const __m512 (&v)[2]) {
  const __m512i a = magnitudes(v[0]), b = magnitudes(v[1]);
  const __m512i most = _mm512_max_epu32(a, b);
  const uint32_t peak = _mm512_reduce_max_epu32(most);
  const __m512i all = _mm512_set1_epi32(int(peak));
  const uint32_t where = _mm512_cmpeq_epi32_mask(a, all) | uint32_t(_mm512_cmpeq_epi32_mask(b, all)) << 16;
  const int at = std::countr_zero(where);
  // Without the lane of the peak, whose other half may be second.
  const __mmask16 lane = __mmask16(1u << (at % 16));
  const __m512i rest = _mm512_mask_min_epu32(most, lane, a, b);
  return {std::bit_cast<float>(peak), std::bit_cast<float>(uint32_t(_mm512_reduce_max_epu32(rest))), at};
}

inline void quantize_piece(const float* const (&x)[kTileTokens], int64_t n_cols, int64_t k0,
                           RowOutliers (&rows)[kTileTokens], TilePiece<1>& out) {
  out.n_outliers = 0;
  for (int g = 0; g < kPieceGroups; ++g) {
    TileGroup<1>& group = out.group[g];
    const int64_t k = k0 + 32 * g;
    __m256i planes[1][kTileTokens];
    for (int t = 0; t < kTileTokens; ++t) {
      planes[0][t] = _mm256_setzero_si256();
      group.scale[t] = 0.0f;
      if (!x[t] || k >= n_cols) continue;
      __m512 v[2];
      load_group(x[t], n_cols, k, v);
      const ActivationScale s = activation_scale(rows[t].scale_peak(k / 32), kActivationMax8);
      group.scale[t] = s.scale;
      __m512i q[2];
      for (int j = 0; j < 2; ++j) q[j] = _mm512_cvtps_epi32(_mm512_mul_ps(v[j], _mm512_set1_ps(s.inverse)));
      if (const int at = rows[t].outlier_in(k / 32); at >= 0) {
        alignas(64) int32_t values[32];
        _mm512_store_si512(values, q[0]);
        _mm512_store_si512(values + 16, q[1]);
        const int high = (values[at] + 64) >> 7;
        values[at] -= 128 * high;
        out.outlier[out.n_outliers++] = {uint8_t(t), uint8_t(32 * g + at), int8_t(high)};
        q[0] = _mm512_load_si512(values);
        q[1] = _mm512_load_si512(values + 16);
      }
      planes[0][t] = narrow(q);
    }
    finish_group<1>(planes, group);
  }
}

inline void quantize_piece(const float* const (&x)[kTileTokens], int64_t n_cols, int64_t k0, TilePiece<2>& out) {
  out.n_outliers = 0;
  for (int g = 0; g < kPieceGroups; ++g) {
    TileGroup<2>& group = out.group[g];
    const int64_t k = k0 + 32 * g;
    __m256i planes[2][kTileTokens];
    for (int t = 0; t < kTileTokens; ++t) {
      planes[0][t] = planes[1][t] = _mm256_setzero_si256();
      group.scale[t] = 0.0f;
      if (!x[t] || k >= n_cols) continue;
      __m512 v[2];
      load_group(x[t], n_cols, k, v);
      const __m512i most = _mm512_max_epu32(magnitudes(v[0]), magnitudes(v[1]));
      const ActivationScale s = activation_scale(std::bit_cast<float>(_mm512_reduce_max_epu32(most)));
      group.scale[t] = s.scale;
      __m512i hi[2], lo[2];
      for (int j = 0; j < 2; ++j) {
        const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(v[j], _mm512_set1_ps(s.inverse)));
        hi[j] = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);
        lo[j] = _mm512_sub_epi32(q, _mm512_slli_epi32(hi[j], 7));
      }
      planes[0][t] = narrow(hi);
      planes[1][t] = narrow(lo);
    }
    finish_group<2>(planes, group);
  }
}

template <int kPlanes>
inline int64_t tile_bytes(int64_t n_cols, int64_t n_tokens) {
  return n_pieces(n_cols) * n_tiles(n_tokens) * int64_t(sizeof(TilePiece<kPlanes>));
}

// Tile `tile` of x [n_tokens, n_cols].
template <int kPlanes>
inline void quantize_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  auto* pieces = reinterpret_cast<TilePiece<kPlanes>*>(out);
  const float* rows[kTileTokens] = {};
  for (int t = 0; t < kTileTokens && tile * kTileTokens + t < n_tokens; ++t)
    rows[t] = x + (tile * kTileTokens + t) * n_cols;
  [[maybe_unused]] RowOutliers outliers[kTileTokens];
  if constexpr (kPlanes == 1) {
    const int64_t n_groups = (n_cols + 31) / 32;
    auto* peaks = reinterpret_cast<GroupPeak*>(thread_scratch(size_t(kTileTokens * n_groups) * sizeof(GroupPeak)));
    for (int t = 0; t < kTileTokens; ++t, peaks += n_groups) {
      if (!rows[t]) continue;
      for (int64_t g = 0; g < n_groups; ++g) {
        __m512 v[2];
        load_group(rows[t], n_cols, 32 * g, v);
        peaks[g] = group_peak(v);
      }
      outliers[t].choose(peaks, n_groups);
    }
  }
  for (int64_t p = 0; p < n_pieces(n_cols); ++p) {
    TilePiece<kPlanes>& piece = pieces[p * n_tiles(n_tokens) + tile];
    if constexpr (kPlanes == 1) {
      quantize_piece(rows, n_cols, p * kPieceK, outliers, piece);
    } else {
      quantize_piece(rows, n_cols, p * kPieceK, piece);
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu
