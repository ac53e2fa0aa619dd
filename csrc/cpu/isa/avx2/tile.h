// Activations of prefill: tiles of four tokens, cut into pieces of 256 and groups of 32 k with a scale a token.
//   8 bit    bytes, 128 + q: vpmaddubsw's unsigned factor. A value that stands out of its group keeps its upper bits in
//            a list beside (outliers.h)
//   15 bit   words: vpmaddwd multiplies them exactly with any weight of the registry
// What one broadcast spreads over the eight rows of a panel lies side by side, the tokens one after the other:
//   bytes    q[k / 4][4 tokens][4 k]
//   words    q[k / 2][4 tokens][2 k]                                                 in the order of word_index()
//   piece 0 of tile 0, piece 0 of tile 1, ...; piece 1 of tile 0, ...                padded with zeros
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cpu/generic/activation_scale.h"
#include "cpu/generic/outliers.h"
#include "cpu/isa/avx2/panel.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

constexpr int kTileTokens = 4;
constexpr int kPieceGroups = kPieceK / 32;

struct TileSums {
  float scale[kTileTokens];
  float sum[kTileTokens];      // scale * sum of values, without what the outliers list
  float half[2][kTileTokens];  // of the first and second 16
};
struct alignas(32) ByteGroup : TileSums {
  uint8_t q[8][kTileTokens][4];
};
struct alignas(32) WordGroup : TileSums {
  int16_t q[16][kTileTokens][2];
};

// Upper bits that q lacks: the value is scale * (128 high + q).
struct TileOutlier {
  uint8_t token, k;
  int8_t high;
};

struct alignas(64) BytePiece {
  ByteGroup group[kPieceGroups];
  int n_outliers;
  TileOutlier outlier[kTileTokens * kMaxOutliers];
};
struct alignas(64) WordPiece {
  WordGroup group[kPieceGroups];
};

inline int64_t n_tiles(int64_t n_tokens) { return (n_tokens + kTileTokens - 1) / kTileTokens; }
inline int64_t n_pieces(int64_t n_cols) { return (n_cols + kPieceK - 1) / kPieceK; }

struct Values32 {
  __m256 v[4];
  explicit Values32(const float* x) {
    for (int j = 0; j < 4; ++j) v[j] = _mm256_loadu_ps(x + 8 * j);
  }
  // Compared as integers: a NaN is larger than any number, and becomes the scale.
  __m256i magnitude(int j) const { return _mm256_and_si256(_mm256_castps_si256(v[j]), _mm256_set1_epi32(0x7fffffff)); }
};

inline int largest_of(__m256i x) {
  __m128i most = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1)));
}
inline float peak_of(const Values32& x) {
  const __m256i a = _mm256_max_epi32(x.magnitude(0), x.magnitude(1));
  return std::bit_cast<float>(largest_of(_mm256_max_epi32(a, _mm256_max_epi32(x.magnitude(2), x.magnitude(3)))));
}
// All ones in the lane of value `at`, if that is one of 8 j to 8 j + 7.
inline __m256i lane_of(int at, int j) {
  return _mm256_cmpeq_epi32(_mm256_set1_epi32(at - 8 * j), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The largest magnitude of a group and the second largest.
inline GroupPeak group_peak(const Values32& x) {
  const auto most = [](__m256i a, __m256i b) { return _mm256_max_epi32(a, b); };
  const auto least = [](__m256i a, __m256i b) { return _mm256_min_epi32(a, b); };
  const __m256i a = x.magnitude(0), b = x.magnitude(1), c = x.magnitude(2), d = x.magnitude(3);
  const __m256i first = most(most(a, b), most(c, d));
  // Of each lane's four values, then of its other lanes' largest: those of all lanes but one that holds the first.
  const __m256i second = most(least(most(a, b), most(c, d)), most(least(a, b), least(c, d)));
  const int peak = largest_of(first);
  const uint32_t where =
      uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(first, _mm256_set1_epi32(peak)))));
  const __m256i others = _mm256_andnot_si256(lane_of(std::countr_zero(where), 0), first);
  return {std::bit_cast<float>(peak), std::bit_cast<float>(largest_of(most(second, others)))};
}
// Which value of a group has this magnitude.
inline int find_magnitude(const Values32& x, float magnitude) {
  const __m256i all = _mm256_set1_epi32(std::bit_cast<int>(magnitude));
  uint32_t where = 0;
  for (int j = 0; j < 4; ++j)
    where |= uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(x.magnitude(j), all)))) << (8 * j);
  return std::countr_zero(where);
}

inline __m256i steps_of(__m256 v, ActivationScale s) {
  return _mm256_cvtps_epi32(_mm256_mul_ps(v, _mm256_set1_ps(s.inverse)));
}
// 32 integers as bytes, in order.
inline __m256i narrow(const __m256i (&q)[4]) {
  const __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
// 16 integers as words in the order of word_index().
inline __m256i words_of_fours(__m256i a, __m256i b) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
  return _mm256_shuffle_epi32(_mm256_shufflehi_epi16(_mm256_shufflelo_epi16(words, 0xd8), 0xd8), 0xd8);
}

// Token t's scale times the sums of its values' first and second half, which for NaNs may be anything.
inline void set_sums(TileSums& to, int t, float scale, int first, int second) {
  to.scale[t] = scale;
  to.half[0][t] = scale * float(first);
  to.half[1][t] = scale * float(second);
  to.sum[t] = scale * float(int64_t{first} + second);
}
inline int lanes_sum(__m128i x) {
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xb1)));
}
// Eight dwords, one for each row of q, which holds all tokens.
template <class Row>
inline void spread(__m256i dwords, Row* q, int t) {
  alignas(32) int32_t each[8];
  store32(each, dwords);
  for (int i = 0; i < 8; ++i) std::memcpy(q[i][t], &each[i], 4);
}

// 32 values in bytes; where the row's outliers name one of them, its upper bits go to the piece's list.
inline void quantize_group(const float* x, const RowOutliers& row, GroupPeak peak, int64_t k, int t, BytePiece& piece) {
  const bool outlier = row.has(k / 32);
  const ActivationScale s = activation_scale(outlier ? outlier_scale_peak(peak) : peak.first, kActivationMax8);
  const Values32 values(x + k);
  __m256i q[4];
  for (int j = 0; j < 4; ++j) q[j] = steps_of(values.v[j], s);
  if (outlier) {
    const int at = find_magnitude(values, peak.first);
    const int high = (_mm_cvtss_si32(_mm_set_ss(x[k + at] * s.inverse)) + 64) >> 7;
    for (int j = 0; j < 4; ++j)
      q[j] = _mm256_sub_epi32(q[j], _mm256_and_si256(lane_of(at, j), _mm256_set1_epi32(128 * high)));
    piece.outlier[piece.n_outliers++] = {uint8_t(t), uint8_t(k % kPieceK + at), int8_t(high)};
  }
  const __m256i packed = narrow(q);
  const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(bytes(1), packed), _mm256_set1_epi16(1));
  ByteGroup& group = piece.group[k % kPieceK / 32];
  set_sums(group, t, s.scale, lanes_sum(_mm256_castsi256_si128(sums)), lanes_sum(_mm256_extracti128_si256(sums, 1)));
  spread(_mm256_xor_si256(packed, bytes(0x80)), group.q, t);
}

// 32 values in words up to max.
inline void quantize_group(const Values32& values, float max, int64_t k, int t, WordPiece& piece) {
  const ActivationScale s = activation_scale(peak_of(values), max);
  WordGroup& group = piece.group[k % kPieceK / 32];
  int sums[2];
  for (int half = 0; half < 2; ++half) {
    const __m256i a = steps_of(values.v[2 * half], s), b = steps_of(values.v[2 * half + 1], s);
    const __m256i sum = _mm256_add_epi32(a, b);
    sums[half] = lanes_sum(_mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1)));
    spread(words_of_fours(a, b), group.q + 8 * half, t);
  }
  set_sums(group, t, s.scale, sums[0], sums[1]);
}

// Tile `tile` of x [n_tokens, n_cols], words up to kMax. For bytes n_cols is a multiple of 32, as every quantized row
// is.
template <class Piece, int kMax = int(kActivationMax)>
inline void quantize_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  constexpr bool kBytes = std::is_same_v<Piece, BytePiece>;
  [[maybe_unused]] float last[32] = {};  // of a row, padded
  auto* pieces = reinterpret_cast<Piece*>(out) + tile;
  const int64_t tiles = n_tiles(n_tokens), n_groups = n_cols / 32;
  const int n = int(std::min<int64_t>(kTileTokens, n_tokens - tile * kTileTokens));
  x += tile * kTileTokens * n_cols;
  for (int64_t p = 0; p < n_pieces(n_cols); ++p) {
    std::memset(static_cast<void*>(&pieces[p * tiles]), 0, sizeof(Piece));
    if constexpr (kBytes)
      for (auto& group : pieces[p * tiles].group) std::memset(group.q, 128, sizeof group.q);
  }
  for (int t = 0; t < n; ++t, x += n_cols) {
    [[maybe_unused]] RowOutliers outliers;
    [[maybe_unused]] GroupPeak* peaks = nullptr;
    if constexpr (kBytes) {
      peaks = reinterpret_cast<GroupPeak*>(thread_scratch(size_t(n_groups) * sizeof(GroupPeak)));
      for (int64_t g = 0; g < n_groups; ++g) peaks[g] = group_peak(Values32(x + 32 * g));
      outliers.choose(peaks, n_groups);
    }
    for (int64_t k = 0; k < n_cols; k += 32) {
      if constexpr (kBytes) {
        quantize_group(x, outliers, peaks[k / 32], k, t, pieces[k / kPieceK * tiles]);
      } else {
        if (n_cols - k < 32) std::copy_n(x + k, n_cols - k, last);
        quantize_group(Values32(n_cols - k < 32 ? last : x + k), kMax, k, t, pieces[k / kPieceK * tiles]);
      }
    }
  }
}

template <class Piece>
inline int64_t tile_bytes(int64_t n_cols, int64_t n_tokens) {
  return n_pieces(n_cols) * n_tiles(n_tokens) * int64_t(sizeof(Piece));
}

// The same values in words, for weights that bytes cannot multiply; outliers are whole again.
inline void widen(const BytePiece& from, WordPiece& to) {
  for (int g = 0; g < kPieceGroups; ++g) {
    const ByteGroup& bytes = from.group[g];
    WordGroup& words = to.group[g];
    static_cast<TileSums&>(words) = bytes;
    for (int i = 0; i < 8; i += 2) {  // two fours of all tokens
      const __m256i q = load32(bytes.q[i]), zero = _mm256_set1_epi16(128);
      store32(words.q[word_index(i, 0)], _mm256_sub_epi16(_mm256_and_si256(q, _mm256_set1_epi16(255)), zero));
      store32(words.q[word_index(i, 1)], _mm256_sub_epi16(_mm256_srli_epi16(q, 8), zero));
    }
  }
  for (int i = 0; i < from.n_outliers; ++i) {
    const TileOutlier& o = from.outlier[i];
    const int k = o.k % 32;
    WordGroup& group = to.group[o.k / 32];
    group.q[word_index(k / 4, k % 2)][o.token][k % 4 / 2] += int16_t(128 * o.high);
    // Minima multiply sums, which lack it as well.
    const float add = group.scale[o.token] * float(128 * o.high);
    group.sum[o.token] += add;
    group.half[k / 16][o.token] += add;
  }
}

}  // namespace
}  // namespace gristmill::cpu
