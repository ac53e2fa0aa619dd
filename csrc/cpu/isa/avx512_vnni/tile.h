// Activations as vpdpbusd wants them: tiles of T tokens (four in a batch, one alone), cut into pieces of 256 and groups
// of 32 k with a scale a token.
//   15 bit  two int8 planes, 128 hi + lo: vpdpbusd multiplies both with the same weights, a shift by 7 joins the sums
//   8 bit   one plane; a value that stands out of its group keeps its upper bits in a list beside (outliers.h)
// Four k of a token lie side by side, the tokens one after the other: the operand that vpdpbusd broadcasts.
//   piece 0 of tile 0, piece 0 of tile 1, ...; piece 1 of tile 0, ...        padded with zeros
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "cpu/generic/activation_scale.h"
#include "cpu/generic/outliers.h"
#include "cpu/isa/avx512_vnni/panel.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

constexpr int kTileTokens = 4;
constexpr int kPieceGroups = kPieceK / 32;

template <int kPlanes, int T>
struct alignas(T == 1 ? 4 : 16) TileGroup {
  int8_t q[kPlanes][8][T][4];
  float scale[T];
  float sum[T];                 // scale * sum of values, without what the outliers list
  int16_t isum[kPlanes][T][2];  // sums of a plane's first and second 16
};

// Upper bits that q lacks: the value is scale * (128 high + q).
struct TileOutlier {
  uint8_t token, k;
  int8_t high;
};

template <int kPlanes, int T>
struct alignas(64) TilePiece {
  TileGroup<kPlanes, T> group[kPieceGroups];
  int n_outliers;
  TileOutlier outlier[kPlanes == 1 ? T * kMaxOutliers : 1];
};

inline int64_t n_tiles(int64_t n_tokens, int tile) { return (n_tokens + tile - 1) / tile; }
inline int64_t n_pieces(int64_t n_cols) { return (n_cols + kPieceK - 1) / kPieceK; }

// Row-major [tokens][8 dwords] -> [8][tokens].
inline void interleave_tokens(const __m256i (&v)[1], int8_t (&q)[8][1][4]) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), v[0]);
}
inline void interleave_tokens(const __m256i (&v)[4], int8_t (&q)[8][4][4]) {
  const __m256i a = _mm256_unpacklo_epi32(v[0], v[1]), b = _mm256_unpackhi_epi32(v[0], v[1]);
  const __m256i c = _mm256_unpacklo_epi32(v[2], v[3]), d = _mm256_unpackhi_epi32(v[2], v[3]);
  const __m256i rows[4] = {_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d),
                           _mm256_unpackhi_epi64(b, d)};
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q[i]), _mm256_castsi256_si128(rows[i]));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q[i + 4]), _mm256_extracti128_si256(rows[i], 1));
  }
}

// Sums of each 16 values of 32.
inline __m128i sums_of_16(__m256i v) {
  const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), v);
  const __m256i pairs = _mm256_hadd_epi32(fours, fours), all = _mm256_hadd_epi32(pairs, pairs);
  return _mm_unpacklo_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

// 32 values as integers: v[0] and v[1] narrowed.
inline __m256i narrow(const __m512i (&v)[2]) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(v[0])), _mm512_cvtepi32_epi8(v[1]), 1);
}

// Token t of a group: one register of 32 values a plane; scale is set.
template <int kPlanes, int T>
inline void set_sums(const __m256i (&planes)[kPlanes][T], int t, TileGroup<kPlanes, T>& g) {
  int sum = 0;
  for (int p = 0; p < kPlanes; ++p) {
    const __m128i sums = sums_of_16(planes[p][t]);
    const int first = _mm_cvtsi128_si32(sums), second = _mm_extract_epi32(sums, 1);
    g.isum[p][t][0] = int16_t(first);
    g.isum[p][t][1] = int16_t(second);
    sum = 128 * sum + first + second;
  }
  g.sum[t] = g.scale[t] * float(sum);
}

inline __mmask16 first_lanes(int64_t n) { return __mmask16(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

// 32 values of a row of n_cols from k on; beyond its end they are zero.
inline void load_group(const float* x, int64_t n_cols, int64_t k, __m512 (&v)[2]) {
  v[0] = _mm512_maskz_loadu_ps(first_lanes(n_cols - k), x + k);
  v[1] = _mm512_maskz_loadu_ps(first_lanes(n_cols - k - 16), x + k + 16);
}

// Magnitudes as integers: a NaN is larger than any number, and becomes the scale.
inline __m512i magnitudes(__m512 v) { return _mm512_castps_si512(_mm512_abs_ps(v)); }
inline __m512i steps_of(__m512 v, ActivationScale s) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(s.inverse)));
}

// The largest magnitude of a group, the second largest, and which of the 32 the largest is.
inline GroupPeak group_peak(const __m512 (&v)[2]) {
  const __m512i a = magnitudes(v[0]), b = magnitudes(v[1]);
  const __m512i most = _mm512_max_epu32(a, b);
  const uint32_t peak = _mm512_reduce_max_epu32(most);
  const __m512i all = _mm512_set1_epi32(int(peak));
  const uint32_t where = _mm512_cmpeq_epi32_mask(a, all) | uint32_t(_mm512_cmpeq_epi32_mask(b, all)) << 16;
  const int at = std::countr_zero(where);
  // Without the lane of the peak, whose other half may be second.
  const __m512i rest = _mm512_mask_min_epu32(most, __mmask16(1u << (at % 16)), a, b);
  return {std::bit_cast<float>(peak), std::bit_cast<float>(uint32_t(_mm512_reduce_max_epu32(rest))), at};
}

// 32 values in one plane; where the row's outliers name one of them, its upper bits go to the piece's list.
template <int T>
inline void quantize_group(const __m512 (&v)[2], const RowOutliers& row, int64_t k, int t, TilePiece<1, T>& piece,
                           TileGroup<1, T>& group, __m256i (&planes)[1][T]) {
  const ActivationScale s = activation_scale(row.scale_peak(k / 32), kActivationMax8);
  group.scale[t] = s.scale;
  __m512i q[2] = {steps_of(v[0], s), steps_of(v[1], s)};
  if (const int at = row.outlier_in(k / 32); at >= 0) {
    alignas(64) int32_t values[32];
    _mm512_store_si512(values, q[0]);
    _mm512_store_si512(values + 16, q[1]);
    const int high = (values[at] + 64) >> 7;
    values[at] -= 128 * high;
    piece.outlier[piece.n_outliers++] = {uint8_t(t), uint8_t(k % kPieceK + at), int8_t(high)};
    q[0] = _mm512_load_si512(values);
    q[1] = _mm512_load_si512(values + 16);
  }
  planes[0][t] = narrow(q);
}

// 32 values in two planes.
template <int T>
inline void quantize_group(const __m512 (&v)[2], int t, TileGroup<2, T>& group, __m256i (&planes)[2][T]) {
  const __m512i most = _mm512_max_epu32(magnitudes(v[0]), magnitudes(v[1]));
  const ActivationScale s = activation_scale(std::bit_cast<float>(_mm512_reduce_max_epu32(most)));
  group.scale[t] = s.scale;
  __m512i hi[2], lo[2];
  for (int j = 0; j < 2; ++j) {
    const __m512i q = steps_of(v[j], s);
    hi[j] = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);
    lo[j] = _mm512_sub_epi32(q, _mm512_slli_epi32(hi[j], 7));
  }
  planes[0][t] = narrow(hi);
  planes[1][t] = narrow(lo);
}

// Tile `tile` of x [n_tokens, n_cols], of tiles of T tokens.
template <int kPlanes, int T>
inline void quantize_tile_of(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  auto* pieces = reinterpret_cast<TilePiece<kPlanes, T>*>(out);
  const int64_t tiles = n_tiles(n_tokens, T);
  const float* rows[T] = {};
  for (int t = 0; t < T && tile * T + t < n_tokens; ++t) rows[t] = x + (tile * T + t) * n_cols;
  [[maybe_unused]] RowOutliers outliers[T];
  if constexpr (kPlanes == 1) {
    const int64_t n_groups = (n_cols + 31) / 32;
    auto* peaks = reinterpret_cast<GroupPeak*>(thread_scratch(size_t(T * n_groups) * sizeof(GroupPeak)));
    for (int t = 0; t < T && rows[t]; ++t, peaks += n_groups) {
      for (int64_t g = 0; g < n_groups; ++g) {
        __m512 v[2];
        load_group(rows[t], n_cols, 32 * g, v);
        peaks[g] = group_peak(v);
      }
      outliers[t].choose(peaks, n_groups);
    }
  }
  for (int64_t p = 0; p < n_pieces(n_cols); ++p) {
    TilePiece<kPlanes, T>& piece = pieces[p * tiles + tile];
    piece.n_outliers = 0;
    for (int64_t k = p * kPieceK; k < (p + 1) * kPieceK; k += 32) {
      TileGroup<kPlanes, T>& group = piece.group[k % kPieceK / 32];
      __m256i planes[kPlanes][T];
      for (int t = 0; t < T; ++t) {
        for (auto& plane : planes) plane[t] = _mm256_setzero_si256();
        group.scale[t] = 0.0f;
        if (rows[t] && k < n_cols) {
          __m512 v[2];
          load_group(rows[t], n_cols, k, v);
          if constexpr (kPlanes == 1) {
            quantize_group(v, outliers[t], k, t, piece, group, planes);
          } else {
            quantize_group(v, t, group, planes);
          }
        }
        set_sums(planes, t, group);
      }
      for (int plane = 0; plane < kPlanes; ++plane) interleave_tokens(planes[plane], group.q[plane]);
    }
  }
}

template <class Piece>
inline int64_t tile_bytes(int64_t n_cols, int64_t n_tokens) {
  return n_pieces(n_cols) * n_tiles(n_tokens, kTileTokens) * int64_t(sizeof(Piece));
}
template <int kPlanes>
inline void quantize_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  quantize_tile_of<kPlanes, kTileTokens>(x, n_cols, n_tokens, tile, out);
}

// In decoding a token alone has tiles of one: its activations are read from one stream.
inline int64_t decode_tile_bytes(int64_t n_cols, int64_t n_tokens) {
  if (n_tokens > 1) return tile_bytes<TilePiece<2, kTileTokens>>(n_cols, n_tokens);
  return n_pieces(n_cols) * int64_t(sizeof(TilePiece<2, 1>));
}
inline void quantize_decode_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  if (n_tokens > 1) return quantize_tile<2>(x, n_cols, n_tokens, tile, out);
  quantize_tile_of<2, 1>(x, n_cols, n_tokens, tile, out);
}

}  // namespace
}  // namespace gristmill::cpu
