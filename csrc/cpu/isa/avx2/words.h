// Half-precision weights (F16, BF16) in prefill: both sides become integers of 14 bits with a scale per 32 k. vpmaddwd
// multiplies sixteen of them and an addition has three ports, where a float32 multiply-add has eight lanes and two.
//     q[k / 2][8 rows][2]      scale[group][8 rows]          in the order of word_index(), as the activations
#pragma once

#include <limits>

#include "cpu/isa/avx2/prefill.h"

namespace gristmill::cpu {
namespace {

struct HalfPanel {
  alignas(32) int16_t q[kPieceK / 2][kPanelRows][2];
  alignas(32) float scale[kPieceGroups][kPanelRows];
  void finish() {}
};

// The lower and the upper weights of dwords as floats.
template <class Format>
GRISTMILL_INLINE __m256 low_floats(__m256i x) {
  if constexpr (Format::kId == formats::TypeId::F16) return low_halves(x);
  static_assert(Format::kId == formats::TypeId::F16 || Format::kId == formats::TypeId::BF16);
  return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
}
template <class Format>
GRISTMILL_INLINE __m256 high_floats(__m256i x) {
  return low_floats<Format>(_mm256_srli_epi32(x, 16));
}

// activation_scale() of 8 rows.
inline void scales_of(__m256 peak, __m256& scale, __m256& inverse) {
  const __m256 most = _mm256_set1_ps(kWordMax);
  const __m256 finite = _mm256_cmp_ps(peak, _mm256_set1_ps(std::numeric_limits<float>::max()), _CMP_LE_OQ);
  const __m256 some = _mm256_and_ps(_mm256_cmp_ps(peak, _mm256_set1_ps(kActivationSmallest), _CMP_GE_OQ), finite);
  scale = _mm256_blendv_ps(_mm256_set1_ps(std::numeric_limits<float>::quiet_NaN()),
                           _mm256_and_ps(_mm256_div_ps(peak, most), some), finite);
  inverse = _mm256_and_ps(_mm256_div_ps(most, peak), some);
}

template <class F>
struct HalfLayout {
  using Format = F;
  static constexpr int kGroup = 32;
  static constexpr bool kHasMin = false, kSuper = false;

  GRISTMILL_INLINE static void unpack(const Rows& rows, HalfPanel& panel) {
    for (int g = 0; g < kPieceGroups; ++g) {
      __m256i c[16];
      for_constants<4>([&](auto i) GRISTMILL_LAMBDA {
        __m256i four[4];
        columns(rows, 64 * g + 16 * i, four);
        for_constants<4>([&](auto j) GRISTMILL_LAMBDA { c[4 * i + j] = four[j]; });
      });
      // Magnitudes of both formats are ordered as integers, and a NaN is the largest.
      const __m256i magnitude = _mm256_set1_epi16(0x7fff);
      __m256i most = _mm256_and_si256(c[0], magnitude);
      for (int i = 1; i < 16; ++i) most = _mm256_max_epu16(most, _mm256_and_si256(c[i], magnitude));
      __m256 scale, inverse;
      scales_of(low_floats<Format>(_mm256_max_epu16(most, _mm256_srli_epi32(most, 16))), scale, inverse);
      _mm256_store_ps(panel.scale[g], scale);
      const auto steps = [&](__m256 x) GRISTMILL_LAMBDA { return _mm256_cvtps_epi32(_mm256_mul_ps(x, inverse)); };
      const auto join = [](__m256i low, __m256i high)
                            GRISTMILL_LAMBDA { return _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa); };
      for_constants<8>([&](auto i) GRISTMILL_LAMBDA {  // four k: two dwords
        const __m256i a = c[2 * i], b = c[2 * i + 1];
        store32(panel.q[16 * g + word_index(i, 0)], join(steps(low_floats<F>(a)), steps(low_floats<F>(b))));
        store32(panel.q[16 * g + word_index(i, 1)], join(steps(high_floats<F>(a)), steps(high_floats<F>(b))));
      });
    }
  }
};

template <class F>
struct Products<HalfLayout<F>, WordGroup> : WordProducts<HalfPanel> {};

template <class Format>
void prefill_halves(const MatmulTask& task) {
  using Block = PrefillBlock<HalfLayout<Format>, WordGroup>;
  const int64_t tiles = n_tiles(task.n);
  std::byte* scratch = thread_scratch(Block::bytes(tiles));
  for (int64_t r0 = task.row_begin; r0 < task.row_end; r0 += kBlockRows) {
    Block block(task, r0, std::min(task.row_end, r0 + kBlockRows), scratch);
    const auto* x = reinterpret_cast<const WordPiece*>(task.x);
    for (int64_t k0 = 0; k0 < task.w->n_cols; k0 += kPieceK, x += tiles) block.add_piece(k0, x);
    block.write();
  }
}

}  // namespace
}  // namespace gristmill::cpu
