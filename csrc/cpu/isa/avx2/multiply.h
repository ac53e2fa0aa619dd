// Panels of 8 rows (panel.h) times tiles of four tokens (tile.h): P x 4 sums of integers in registers, one broadcast
// from memory for P products with weights from memory. A token's sums are made in one order, whatever P is and
// whichever tokens lie beside it.
#pragma once

#include "cpu/isa/avx2/panel_formats.h"
#include "cpu/isa/avx2/tile.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanels = 3;  // 12 sums, a broadcast and a product leave two registers

// Sums of a panel with a tile's tokens.
struct alignas(32) PanelSums {
  float of[kTileTokens][kPanelRows];
};

// What the two kinds of activations differ in. Of 32 k there are kSteps broadcasts of a token.
template <class Layout, class Group>
struct Products;

template <class Layout>
struct Products<Layout, ByteGroup> {
  using Panel = BytePanel<Layout>;
  using Piece = BytePiece;
  static constexpr int kSteps = 8;
  // Sums of 16 bits: vpmaddubsw adds two products, vpaddw the others of a group.
  static __m256i first(const Panel& panel, int group, __m256i x, __m256i q) {
    return in_order(_mm256_add_epi16(_mm256_maddubs_epi16(x, q), load32(panel.start[group])));
  }
  static __m256i add(__m256i x, __m256i q, __m256i sum) {
    return in_order(_mm256_add_epi16(sum, _mm256_maddubs_epi16(x, q)));
  }
  // kSuper: at most 2 * 32512 * 128 for a group of 16.
  static __m256i finish(const Panel& panel, int group, __m256i sum) {
    return _mm256_madd_epi16(sum, Layout::kSuper ? load32(panel.factor[group]) : _mm256_set1_epi16(1));
  }
};

template <class AnyPanel>
struct WordProducts {
  using Panel = AnyPanel;
  using Piece = WordPiece;
  static constexpr int kSteps = 16;
  static __m256i first(const Panel&, int, __m256i x, __m256i q) { return in_order(_mm256_madd_epi16(x, q)); }
  static __m256i add(__m256i x, __m256i q, __m256i sum) {
    return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(x, q)));
  }
  static __m256i finish(const Panel&, int, __m256i sum) { return sum; }
};

template <class Layout>
struct Products<Layout, WordGroup> : WordProducts<WordPanel<Layout>> {};

// minimum * sum of activations, and where a superblock has one scale, scale * what its groups gave.
template <class Layout, class Panel, class Group, int P>
inline void add_minima(const Panel* panels, const Group* groups, int n_groups, PanelSums* sums) {
  constexpr int kHalves = 32 / Layout::kGroup;
  __m256 s[P][kTileTokens];
#pragma GCC unroll 12
  for (int i = 0; i < P * kTileTokens; ++i)
    s[i / kTileTokens][i % kTileTokens] = _mm256_load_ps(sums[i / kTileTokens].of[i % kTileTokens]);
  for (int g = 0; g < n_groups; ++g)
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h)
#pragma GCC unroll 4
      for (int t = 0; t < kTileTokens; ++t) {
        const __m256 x = _mm256_set1_ps(kHalves == 2 ? groups[g].half[h][t] : groups[g].sum[t]);
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p)
          s[p][t] = _mm256_fmadd_ps(_mm256_load_ps(panels[p].minimum[kHalves * g + h]), x, s[p][t]);
      }
#pragma GCC unroll 12
  for (int i = 0; i < P * kTileTokens; ++i)
    _mm256_store_ps(sums[i / kTileTokens].of[i % kTileTokens], s[i / kTileTokens][i % kTileTokens]);
}

// sums += panels . tile over n_groups groups of 32 k.
template <class Layout, class Group, int P>
inline void multiply_tile(const typename Products<Layout, Group>::Panel* panels, const Group* groups, int n_groups,
                          PanelSums* sums) {
  using Multiply = Products<Layout, Group>;
  constexpr int T = kTileTokens;
  // Integers that are multiplied by factors already need no group kept apart.
  constexpr bool kWhole = Layout::kSuper && std::is_same_v<Group, WordGroup>;
  constexpr int kGroup = kWhole ? 32 : Layout::kGroup, kHalves = 32 / kGroup, kSteps = Multiply::kSteps / kHalves;
  PanelSums superblock[P];
  if constexpr (Layout::kSuper) std::memset(static_cast<void*>(superblock), 0, sizeof superblock);
  PanelSums* to = Layout::kSuper ? superblock : sums;
  for (int g = 0; g < n_groups; ++g) {
    const Group& x = groups[g];
    __m256i dot[P][T];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      __m256i acc[P][T];
#pragma GCC unroll 16
      for (int i = 0; i < kSteps; ++i) {
        const int step = Multiply::kSteps * g + h * kSteps + i;
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          // One broadcast at a time: all at once would push sums out of registers.
          __m256i four = broadcast4(x.q[h * kSteps + i][t]);
          asm volatile("" : "+x"(four));
#pragma GCC unroll 3
          for (int p = 0; p < P; ++p) {
            const __m256i q = load32(panels[p].q[step]);
            acc[p][t] =
                i == 0 ? Multiply::first(panels[p], kHalves * g + h, four, q) : Multiply::add(four, q, acc[p][t]);
          }
        }
      }
#pragma GCC unroll 12
      for (int i = 0; i < P * T; ++i) {
        const int p = i / T, t = i % T;
        acc[p][t] = Multiply::finish(panels[p], kHalves * g + h, acc[p][t]);
        if constexpr (Layout::kSuper) {
          dot[p][t] = h == 0 ? acc[p][t] : _mm256_add_epi32(dot[p][t], acc[p][t]);
        } else {  // each group has a scale
          const __m256 scaled =
              _mm256_mul_ps(_mm256_cvtepi32_ps(acc[p][t]), _mm256_load_ps(panels[p].scale[kHalves * g + h]));
          float* sum = to[p].of[t];
          _mm256_store_ps(sum, _mm256_fmadd_ps(scaled, _mm256_set1_ps(x.scale[t]), _mm256_load_ps(sum)));
        }
      }
    }
    if constexpr (Layout::kSuper) {
#pragma GCC unroll 12
      for (int i = 0; i < P * T; ++i) {
        float* sum = to[i / T].of[i % T];
        _mm256_store_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[i / T][i % T]), _mm256_set1_ps(x.scale[i % T]),
                                             _mm256_load_ps(sum)));
      }
    }
  }
  if constexpr (Layout::kSuper) {
    for (int p = 0; p < P; ++p)
      for (int t = 0; t < T; ++t)
        _mm256_store_ps(sums[p].of[t],
                        _mm256_fmadd_ps(_mm256_load_ps(superblock[p].of[t]), _mm256_load_ps(panels[p].scale[0]),
                                        _mm256_load_ps(sums[p].of[t])));
  }
  if constexpr (Layout::kHasMin) add_minima<Layout, typename Multiply::Panel, Group, P>(panels, groups, n_groups, sums);
}

// The upper bits of a tile's outliers: 128 scale * high * weight for one column each.
template <class Layout>
inline void add_outliers(const BytePanel<Layout>* panels, int n_panels, const BytePiece& piece, PanelSums* sums) {
  for (int i = 0; i < piece.n_outliers; ++i) {
    const TileOutlier& o = piece.outlier[i];
    const int group = o.k / Layout::kGroup;
    const __m256 size = _mm256_set1_ps(128.0f * float(o.high) * piece.group[o.k / 32].scale[o.token]);
    const __m128i shift = _mm_cvtsi32_si128(24 - 8 * (o.k % 4));
    for (int p = 0; p < n_panels; ++p) {
      const BytePanel<Layout>& panel = panels[p];
      __m256i q = _mm256_srai_epi32(_mm256_sll_epi32(load32(panel.q[o.k / 4]), shift), 24);
      if constexpr (Layout::kSuper)
        q = _mm256_madd_epi16(_mm256_and_si256(q, _mm256_set1_epi32(0xffff)), load32(panel.factor[group]));
      __m256 weight = _mm256_mul_ps(_mm256_cvtepi32_ps(q), _mm256_load_ps(panel.scale[Layout::kSuper ? 0 : group]));
      if constexpr (Layout::kHasMin) weight = _mm256_add_ps(weight, _mm256_load_ps(panel.minimum[group]));
      float* sum = sums[p].of[o.token];
      _mm256_store_ps(sum, _mm256_fmadd_ps(weight, size, _mm256_load_ps(sum)));
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu
