// Activations into tiles (tile.h), four tokens at once: what is a reduction for each token alone is a few instructions
// for four of them side by side.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "cpu/generic/activation_scale.h"
#include "cpu/isa/avx512_vnni/tile.h"

namespace gristmill::cpu {
namespace {

// ---- largest magnitudes ----

// The largest and second largest of what each lane stands for; as integers, so that a NaN is larger than any number and
// becomes the scale.
struct Peaks {
  __m512i first, second;
};
GRISTMILL_INLINE Peaks merge(Peaks a, Peaks b) {
  return {_mm512_max_epu32(a.first, b.first),
          _mm512_max_epu32(_mm512_min_epu32(a.first, b.first), _mm512_max_epu32(a.second, b.second))};
}

inline __m512i magnitudes(__m512 v) { return _mm512_castps_si512(_mm512_abs_ps(v)); }

struct TilePeaks {
  __m128i first, second;  // of token t in lane t
};
// Of 32 values of each of four tokens. Each step halves what is left of a token and puts another token's half beside
// it.
GRISTMILL_INLINE TilePeaks tile_peaks(const __m512 (&v)[kTileTokens][2]) {
  Peaks p[kTileTokens];
#pragma GCC unroll 4
  for (int t = 0; t < kTileTokens; ++t) {
    const __m512i a = magnitudes(v[t][0]), b = magnitudes(v[t][1]);
    p[t] = {_mm512_max_epu32(a, b), _mm512_min_epu32(a, b)};
  }
  const auto dwords = [](Peaks a, Peaks b) GRISTMILL_LAMBDA {
    return merge({_mm512_unpacklo_epi32(a.first, b.first), _mm512_unpacklo_epi32(a.second, b.second)},
                 {_mm512_unpackhi_epi32(a.first, b.first), _mm512_unpackhi_epi32(a.second, b.second)});
  };
  const Peaks two[2] = {dwords(p[0], p[1]), dwords(p[2], p[3])};
  Peaks all =
      merge({_mm512_unpacklo_epi64(two[0].first, two[1].first), _mm512_unpacklo_epi64(two[0].second, two[1].second)},
            {_mm512_unpackhi_epi64(two[0].first, two[1].first), _mm512_unpackhi_epi64(two[0].second, two[1].second)});
  all = merge(all,
              {_mm512_shuffle_i64x2(all.first, all.first, 0x4e), _mm512_shuffle_i64x2(all.second, all.second, 0x4e)});
  all = merge(all,
              {_mm512_shuffle_i64x2(all.first, all.first, 0xb1), _mm512_shuffle_i64x2(all.second, all.second, 0xb1)});
  return {_mm512_castsi512_si128(all.first), _mm512_castsi512_si128(all.second)};
}

// Four groups' peaks in memory, and what is the first of each there.
inline void store_peaks(const TilePeaks& p, GroupPeak* to) {
  store16(to, _mm_unpacklo_epi32(p.first, p.second));
  store16(to + 2, _mm_unpackhi_epi32(p.first, p.second));
}
inline __m128 load_first(const GroupPeak* peaks) {
  const auto* p = reinterpret_cast<const float*>(peaks);
  return _mm_shuffle_ps(_mm_loadu_ps(p), _mm_loadu_ps(p + 4), 0x88);
}

// activation_scale() of a tile's tokens.
struct TileScales {
  __m128 scale, inverse;
};
inline TileScales tile_scales(__m128 peak, float max) {
  const __m128 most = _mm_set1_ps(max);
  const __mmask8 finite = _mm_cmp_ps_mask(peak, _mm_set1_ps(std::numeric_limits<float>::max()), _CMP_LE_OQ);
  const __mmask8 some = _mm_cmp_ps_mask(peak, _mm_set1_ps(kActivationSmallest), _CMP_GE_OQ) & finite;
  return {
      _mm_mask_mov_ps(_mm_set1_ps(std::numeric_limits<float>::quiet_NaN()), finite, _mm_maskz_div_ps(some, peak, most)),
      _mm_maskz_div_ps(some, most, peak)};
}

// ---- integers ----

inline __m512i steps_of(__m512 v, float inverse) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(inverse)));
}

// 16 k of four tokens -> [k / 4][token][4]: packing puts the same lane of 128 bits of both its operands side by side.
inline __m512i interleave_bytes(const __m512i (&q)[kTileTokens]) {
  return _mm512_packs_epi16(_mm512_packs_epi32(q[0], q[1]), _mm512_packs_epi32(q[2], q[3]));
}
// Sums over k of those.
inline __m128i token_sums(__m512i bytes) {
  const __m512i fours = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
  const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(fours), _mm512_extracti64x4_epi64(fours, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// q: [plane][first or second 16 k][token]
template <int kPlanes>
GRISTMILL_INLINE void set_group(const __m512i (&q)[kPlanes][2][kTileTokens], __m128 scale,
                                TileGroup<kPlanes, kTileTokens>& to) {
  __m128i all = _mm_setzero_si128();
  for (int p = 0; p < kPlanes; ++p) {
    __m128i sums[2];
    for (int half = 0; half < 2; ++half) {
      const __m512i bytes = interleave_bytes(q[p][half]);
      _mm512_storeu_si512(to.q[p][4 * half], bytes);
      sums[half] = token_sums(bytes);
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to.isum[p]),
                     _mm_blend_epi16(sums[0], _mm_slli_epi32(sums[1], 16), 0xaa));
    all = _mm_add_epi32(_mm_slli_epi32(all, 7), _mm_add_epi32(sums[0], sums[1]));
  }
  _mm_storeu_ps(to.scale, scale);
  _mm_storeu_ps(to.sum, _mm_mul_ps(scale, _mm_cvtepi32_ps(all)));
}

// hi and lo of integers of 15 bits.
inline void split(__m512i q, __m512i& hi, __m512i& lo) {
  hi = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);
  lo = _mm512_sub_epi32(q, _mm512_slli_epi32(hi, 7));
}

// ---- tiles of four tokens ----

// Rows of a tile. Where tokens are missing, the last one's are there again: multiplied as well, stored nowhere.
struct TileRows {
  const float* row[kTileTokens];
  int n_tokens;
  TileRows(const float* x, int64_t n_cols, int64_t n, int64_t tile)
      : n_tokens(int(std::min<int64_t>(kTileTokens, n - tile * kTileTokens))) {
    for (int t = 0; t < kTileTokens; ++t) row[t] = x + (tile * kTileTokens + std::min(t, n_tokens - 1)) * n_cols;
  }
  // 32 values of each from k on.
  GRISTMILL_INLINE void load(int64_t k, __m512 (&v)[kTileTokens][2]) const {
#pragma GCC unroll 4
    for (int t = 0; t < kTileTokens; ++t)
      for (int half = 0; half < 2; ++half) v[t][half] = _mm512_loadu_ps(row[t] + k + 16 * half);
  }
  // Zeros beyond n_cols.
  GRISTMILL_INLINE void load_part(int64_t k, int64_t n_cols, __m512 (&v)[kTileTokens][2]) const {
    for (int t = 0; t < kTileTokens; ++t)
      for (int half = 0; half < 2; ++half)
        v[t][half] = _mm512_maskz_loadu_ps(first_lanes(n_cols - k - 16 * half), row[t] + k + 16 * half);
  }
};

// The outliers of a tile of T tokens: their upper bits go to the piece's list, and what is left of them to its group.
template <int T>
class TileOutliers {
 public:
  // peaks: [group][token]; where a group has an outlier, its largest becomes what 127 stands for.
  void choose(GroupPeak* peaks, int64_t n_groups, int n_tokens) {
    for (int t = 0; t < n_tokens; ++t) {
      RowOutliers row;
      row.choose(peaks + t, n_groups, T);
      for (int i = 0; i < row.size(); ++i) {
        GroupPeak& peak = peaks[row.group(i) * T + t];
        found_[n_++] = {row.group(i), t, peak.first};
        peak.first = outlier_scale_peak(peak);
      }
    }
    for (int i = 1; i < n_; ++i)  // a handful, in order of their groups
      for (int j = i; j > 0 && found_[j].group < found_[j - 1].group; --j) std::swap(found_[j], found_[j - 1]);
  }
  // To be asked for every group, in order.
  GRISTMILL_INLINE void take_out(int64_t group, const __m512 (&v)[T][2], __m512i (&q)[1][2][T],
                                 TilePiece<1, T>& piece) {
    if (next_ == n_ || found_[next_].group != group) return;
    // By way of memory, since an index into registers would keep them there for every group.
    alignas(64) int32_t values[2][T][16];
    for (int i = 0; i < 2 * T; ++i) _mm512_store_si512(values[i / T][i % T], q[0][i / T][i % T]);
    for (; next_ < n_ && found_[next_].group == group; ++next_) {
      const int t = found_[next_].token;
      const __m512i peak = _mm512_set1_epi32(std::bit_cast<int>(found_[next_].peak));
      const int at = std::countr_zero(_mm512_cmpeq_epi32_mask(magnitudes(v[t][0]), peak) |
                                      uint32_t(_mm512_cmpeq_epi32_mask(magnitudes(v[t][1]), peak)) << 16);
      int32_t& value = values[at / 16][t][at % 16];
      const int high = (value + 64) >> 7;
      value -= 128 * high;
      piece.outlier[piece.n_outliers++] = {uint8_t(t), uint8_t(group * 32 % kPieceK + at), int8_t(high)};
    }
    for (int i = 0; i < 2 * T; ++i) q[0][i / T][i % T] = _mm512_load_si512(values[i / T][i % T]);
  }

 private:
  struct Found {
    int64_t group;
    int token;
    float peak;
  };
  Found found_[T * kMaxOutliers];
  int n_ = 0, next_ = 0;
};

// Tile `tile` of x [n_tokens, n_cols]; n_cols is a multiple of 32, as every quantized row is.
template <int kPlanes>
inline void quantize_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  const TileRows rows(x, n_cols, n_tokens, tile);
  const int64_t n_groups = n_cols / 32, tiles = n_tiles(n_tokens, kTileTokens);
  [[maybe_unused]] GroupPeak* peaks = nullptr;  // [group][token]
  [[maybe_unused]] TileOutliers<kTileTokens> outliers;
  if constexpr (kPlanes == 1) {
    peaks = reinterpret_cast<GroupPeak*>(thread_scratch(size_t(kTileTokens * n_groups) * sizeof(GroupPeak)));
    for (int64_t g = 0; g < n_groups; ++g) {
      __m512 v[kTileTokens][2];
      rows.load(32 * g, v);
      store_peaks(tile_peaks(v), peaks + kTileTokens * g);
    }
    outliers.choose(peaks, n_groups, rows.n_tokens);
  }
  auto* pieces = reinterpret_cast<TilePiece<kPlanes, kTileTokens>*>(out) + tile;
  for (int64_t g = 0; g < n_pieces(n_cols) * kPieceGroups; ++g) {
    TilePiece<kPlanes, kTileTokens>& piece = pieces[g / kPieceGroups * tiles];
    auto& group = piece.group[g % kPieceGroups];
    if (g % kPieceGroups == 0) piece.n_outliers = 0;
    if (g >= n_groups) {
      std::memset(static_cast<void*>(&group), 0, sizeof group);
      continue;
    }
    __m512 v[kTileTokens][2];
    rows.load(32 * g, v);
    TileScales s;
    if constexpr (kPlanes == 1) {
      s = tile_scales(load_first(peaks + kTileTokens * g), kActivationMax8);
    } else {
      s = tile_scales(_mm_castsi128_ps(tile_peaks(v).first), kActivationMax);
    }
    alignas(16) float inverse[kTileTokens];
    _mm_store_ps(inverse, s.inverse);
    __m512i q[kPlanes][2][kTileTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTileTokens; ++t)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        q[0][half][t] = steps_of(v[t][half], inverse[t]);
        if constexpr (kPlanes == 2) split(q[0][half][t], q[0][half][t], q[1][half][t]);
      }
    if constexpr (kPlanes == 1) outliers.take_out(g, v, q, piece);
    set_group(q, s.scale, group);
  }
}

// ---- a token alone ----

// Sums of each 16 bytes of 32.
inline __m128i sums_of_16(__m256i v) {
  const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), v);
  const __m256i pairs = _mm256_hadd_epi32(fours, fours), all = _mm256_hadd_epi32(pairs, pairs);
  return _mm_unpacklo_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

// q: [plane][first or second 16 k]
template <int kPlanes>
GRISTMILL_INLINE void set_group(const __m512i (&q)[kPlanes][2][1], float scale, TileGroup<kPlanes, 1>& to) {
  int sum = 0;
  for (int p = 0; p < kPlanes; ++p) {
    const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm512_cvtepi32_epi8(q[p][0][0])),
                                                  _mm512_cvtepi32_epi8(q[p][1][0]), 1);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to.q[p]), bytes);
    const __m128i sums = sums_of_16(bytes);
    const int first = _mm_cvtsi128_si32(sums), second = _mm_extract_epi32(sums, 1);
    to.isum[p][0][0] = int16_t(first);
    to.isum[p][0][1] = int16_t(second);
    sum = 128 * sum + first + second;
  }
  to.scale[0] = scale;
  to.sum[0] = scale * float(sum);
}

// Four groups of 32 from k on, zeros beyond n_cols: where a tile has four tokens.
GRISTMILL_INLINE void load_groups(const float* x, int64_t k, int64_t n_cols, __m512 (&v)[kTileTokens][2]) {
#pragma GCC unroll 8
  for (int i = 0; i < 2 * kTileTokens; ++i)
    v[i / 2][i % 2] = _mm512_maskz_loadu_ps(first_lanes(n_cols - k - 16 * i), x + k + 16 * i);
}

template <int kPlanes>
inline void quantize_token(const float* x, int64_t n_cols, TilePiece<kPlanes, 1>* pieces) {
  const int64_t n_groups = n_cols / 32;
  [[maybe_unused]] GroupPeak* peaks = nullptr;
  [[maybe_unused]] TileOutliers<1> outliers;
  if constexpr (kPlanes == 1) {
    peaks = reinterpret_cast<GroupPeak*>(thread_scratch(size_t(n_groups + kTileTokens) * sizeof(GroupPeak)));
    for (int64_t g = 0; g < n_groups; g += kTileTokens) {
      __m512 v[kTileTokens][2];
      load_groups(x, 32 * g, n_cols, v);
      store_peaks(tile_peaks(v), peaks + g);
    }
    outliers.choose(peaks, n_groups, 1);
  }
  for (int64_t g = 0; g < n_pieces(n_cols) * kPieceGroups; g += kTileTokens) {
    TilePiece<kPlanes, 1>& piece = pieces[g / kPieceGroups];
    TileGroup<kPlanes, 1>* groups = piece.group + g % kPieceGroups;
    if (g % kPieceGroups == 0) piece.n_outliers = 0;
    if (g >= n_groups) {
      std::memset(static_cast<void*>(groups), 0, kTileTokens * sizeof *groups);
      continue;
    }
    __m512 v[kTileTokens][2];
    load_groups(x, 32 * g, n_cols, v);
    TileScales s;
    if constexpr (kPlanes == 1) {
      s = tile_scales(load_first(peaks + g), kActivationMax8);
    } else {
      s = tile_scales(_mm_castsi128_ps(tile_peaks(v).first), kActivationMax);
    }
    alignas(16) float scale[kTileTokens], inverse[kTileTokens];
    _mm_store_ps(scale, s.scale);
    _mm_store_ps(inverse, s.inverse);
#pragma GCC unroll 4
    for (int i = 0; i < kTileTokens; ++i) {
      const __m512 one[1][2] = {{v[i][0], v[i][1]}};
      __m512i q[kPlanes][2][1];
      for (int half = 0; half < 2; ++half) {
        q[0][half][0] = steps_of(one[0][half], inverse[i]);
        if constexpr (kPlanes == 2) split(q[0][half][0], q[0][half][0], q[1][half][0]);
      }
      if constexpr (kPlanes == 1) outliers.take_out(g + i, one, q, piece);
      set_group(q, scale[i], groups[i]);
    }
  }
}

template <int kPlanes>
inline void quantize_decode_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  if (n_tokens > 1) return quantize_tile<kPlanes>(x, n_cols, n_tokens, tile, out);
  quantize_token(x, n_cols, reinterpret_cast<TilePiece<kPlanes, 1>*>(out));
}

}  // namespace
}  // namespace gristmill::cpu
