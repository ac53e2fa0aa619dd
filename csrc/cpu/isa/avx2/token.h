// Decoding: a single token's activations of 15 bits, and the sink that multiplies weights with them as they come and
// keeps none. Weights of up to 6 bits meet two int8 planes, 128 hi + lo, by vpmaddubsw; others words, by vpmaddwd.
// Weights lie in registers here and are the unsigned factor: what Layout::kZero takes away, sums begin with.
#pragma once

#include "cpu/isa/avx2/panel_formats.h"
#include "cpu/isa/avx2/tile.h"

namespace gristmill::cpu {
namespace {

// 256 activations; what k lies where is said in tile.h.
struct alignas(64) TokenPiece {
  int8_t plane[2][kPieceK / 4][4];
  int16_t words[kPieceK / 2][2];
  float scale[8], sum[8], half[16];
  // Sums of integers: of a plane by its k % 4 < 2 and the others, as vpmaddubsw adds them, and of words.
  int16_t plane_sum16[2][16][2], plane_sum32[2][8][2];
  int32_t sum16[16], sum32[8];
};

// Sums of the dwords of each half, in 16 bits: two dwords.
inline void store_pair_sums(__m256i plane, int16_t (*sum16)[2], int16_t* sum32) {
  __m256i pairs = _mm256_maddubs_epi16(bytes(1), plane);
  pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
  pairs = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
  const __m128i first = _mm256_castsi256_si128(pairs), second = _mm256_extracti128_si256(pairs, 1);
  _mm_storeu_si32(sum16[0], first);
  _mm_storeu_si32(sum16[1], second);
  _mm_storeu_si32(sum32, _mm_add_epi16(first, second));
}

inline void quantize_token(const float* x, int64_t n_cols, std::byte* out) {
  auto* pieces = reinterpret_cast<TokenPiece*>(out);
  if (n_cols % kPieceK) std::memset(static_cast<void*>(&pieces[n_cols / kPieceK]), 0, sizeof(TokenPiece));
  for (int64_t k = 0; k < n_cols; k += 32) {
    TokenPiece& to = pieces[k / kPieceK];
    const int g = int(k % kPieceK / 32);
    const Values32 values(x + k);
    const ActivationScale s = activation_scale(peak_of(values));
    __m256i hi[4], lo[4];
    int sums[2];
    for (int half = 0; half < 2; ++half) {
      const __m256i a = steps_of(values.v[2 * half], s), b = steps_of(values.v[2 * half + 1], s);
      const __m256i sum = _mm256_add_epi32(a, b);
      sums[half] = lanes_sum(_mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1)));
      store32(to.words[16 * g + 8 * half], words_of_fours(a, b));
      for (int j = 0; j < 2; ++j) {
        const __m256i q = j ? b : a;
        hi[2 * half + j] = _mm256_srai_epi32(_mm256_add_epi32(q, _mm256_set1_epi32(64)), 7);
        lo[2 * half + j] = _mm256_sub_epi32(q, _mm256_slli_epi32(hi[2 * half + j], 7));
      }
    }
    for (int p = 0; p < 2; ++p) {
      const __m256i plane = narrow(p ? lo : hi);
      store32(to.plane[p][8 * g], plane);
      store_pair_sums(plane, &to.plane_sum16[p][2 * g], to.plane_sum32[p][g]);
    }
    to.scale[g] = s.scale;
    to.half[2 * g] = s.scale * float(sums[0]);
    to.half[2 * g + 1] = s.scale * float(sums[1]);
    to.sum[g] = s.scale * float(sums[0] + sums[1]);
    to.sum16[2 * g] = sums[0];
    to.sum16[2 * g + 1] = sums[1];
    to.sum32[g] = sums[0] + sums[1];
  }
}

template <class Layout>
struct TokenSink : PanelScales {
  static constexpr bool kBytes = Layout::kMaxCode <= 32;
  static constexpr int kGroup = Layout::kGroup, kGroups = kPieceK / kGroup, kFours = kGroup / 4;
  const TokenPiece& x;
  __m256i a[kGroups], b[kGroups];  // of the groups that are under way: planes, or words of even and of odd k
  alignas(32) int32_t dot[kGroups][kPanelRows];
  alignas(32) int32_t factor[kGroups][kPanelRows];
  alignas(32) int32_t start[2][kGroups];  // -kZero times the token's sums

  GRISTMILL_INLINE explicit TokenSink(const TokenPiece& piece) : x(piece) {
    if constexpr (Layout::kZero != 0)
      for (int i = 0; i < kGroups / 8; ++i) {
        if constexpr (kBytes) {
          for (int p = 0; p < 2; ++p) {
            const auto* sums = kGroup == 32 ? x.plane_sum32[p] : x.plane_sum16[p] + 8 * i;
            store32(start[p] + 8 * i, _mm256_mullo_epi16(load32(sums), _mm256_set1_epi16(-Layout::kZero)));
          }
        } else {
          const int32_t* sums = kGroup == 32 ? x.sum32 : x.sum16 + 8 * i;
          store32(start[0] + 8 * i, _mm256_mullo_epi32(load32(sums), _mm256_set1_epi32(-Layout::kZero)));
        }
      }
  }

  GRISTMILL_INLINE void set_factor(int group, __m256i f) { store32(factor[group], kBytes ? in_both_halves(f) : f); }

  // Of the calls for a group, the one of its lowest i comes first and the one of its highest last.
  template <class I>
  GRISTMILL_INLINE void set_u(I i, __m256i u) {
    constexpr int g = i / kFours;
    constexpr bool kFirst = i % kFours == 0;
    __m256i first, second;
    if constexpr (kBytes) {
      first = _mm256_maddubs_epi16(u, broadcast4(x.plane[0][i]));
      second = _mm256_maddubs_epi16(u, broadcast4(x.plane[1][i]));
    } else {
      first = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)), broadcast4(x.words[word_index(i, 0)]));
      second = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), broadcast4(x.words[word_index(i, 1)]));
    }
    if constexpr (!kFirst || Layout::kZero != 0) {
      first = add(first, kFirst ? _mm256_set1_epi32(start[0][g]) : a[g]);
      if constexpr (!kFirst || kBytes) second = add(second, kFirst ? _mm256_set1_epi32(start[1][g]) : b[g]);
    }
    a[g] = in_order(first);
    b[g] = in_order(second);
    if constexpr (i % kFours == kFours - 1) store32(dot[g], total(g));
  }
  static __m256i add(__m256i p, __m256i q) { return kBytes ? _mm256_add_epi16(p, q) : _mm256_add_epi32(p, q); }

  GRISTMILL_INLINE __m256i total(int g) const {
    if constexpr (kBytes) {
      const __m256i by = Layout::kSuper ? load32(factor[g]) : _mm256_set1_epi16(1);
      return _mm256_add_epi32(_mm256_slli_epi32(_mm256_madd_epi16(a[g], by), 7), _mm256_madd_epi16(b[g], by));
    }
    const __m256i sum = _mm256_add_epi32(a[g], b[g]);
    return Layout::kSuper ? _mm256_mullo_epi32(sum, load32(factor[g])) : sum;
  }

  GRISTMILL_INLINE void finish() {}

  // In the order of multiply_tile, so that a token alone gets the bits that it gets beside others.
  GRISTMILL_INLINE __m256 add_to(__m256 s) const {
    constexpr int kHalves = 32 / kGroup;
    __m256 superblock = _mm256_setzero_ps();
    for (int g = 0; g < kPieceGroups; ++g) {
      const __m256 scale = _mm256_set1_ps(x.scale[g]);
      if constexpr (Layout::kSuper) {
        __m256i sum = load32(dot[kHalves * g]);
        if constexpr (kHalves == 2) sum = _mm256_add_epi32(sum, load32(dot[2 * g + 1]));
        superblock = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, superblock);
      } else {
        for (int h = kHalves * g; h < kHalves * (g + 1); ++h) {
          const __m256 sum = _mm256_cvtepi32_ps(load32(dot[h]));
          s = _mm256_fmadd_ps(_mm256_mul_ps(sum, _mm256_load_ps(this->scale[h])), scale, s);
        }
      }
    }
    if constexpr (Layout::kSuper) s = _mm256_fmadd_ps(superblock, _mm256_load_ps(this->scale[0]), s);
    if constexpr (Layout::kHasMin)
      for (int g = 0; g < kGroups; ++g)
        s = _mm256_fmadd_ps(_mm256_load_ps(minimum[g]), _mm256_set1_ps(kHalves == 2 ? x.half[g] : x.sum[g]), s);
    return s;
  }
};

}  // namespace
}  // namespace gristmill::cpu
