// Panels of 16 rows (panel.h) times tiles of tokens (tile.h): P x T sums of integers in registers, one broadcast from
// memory for P vpdpbusd. A token's sums are made in one order, whatever P, T and the tokens beside it.
#pragma once

#include "cpu/isa/avx512_vnni/panel_formats.h"
#include "cpu/isa/avx512_vnni/tile.h"

namespace gristmill::cpu {
namespace {

// Sums of a panel with a tile's tokens.
template <int T>
using PanelSums = float[T][kPanelRows];

// Where integer sums start: those of one plane at kSumBase, of two at zero.
template <int kPlanes>
constexpr int32_t kSumStart = kPlanes == 1 ? kSumBaseBits : 0;

// kSumStart less kZero times the sum of a token's activations: broadcasts from memory cost no port that multiplies, and
// all groups at once leave no wait between them.
template <class Layout, int kPlanes, int T, int kHalves>
inline void set_starts(const TileGroup<kPlanes, T>* groups, int n_groups,
                       int32_t (&starts)[kPieceGroups][kHalves][kPlanes][T]) {
  static_assert(T == kTileTokens);
  for (int g = 0; g < n_groups; ++g)
#pragma GCC unroll 4
    for (int i = 0; i < kHalves * kPlanes; ++i) {
      const int half = i / kPlanes, plane = i % kPlanes;
      const auto& sums = groups[g].isum[plane];
      auto& to = starts[g][half][plane];
      const uint32_t zero = -Layout::kZero & 0xffffu;
      const __m128i factors = _mm_set1_epi32(int(kHalves == 1 ? zero * 0x10001u : half ? zero * 0x10000u : zero));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                       _mm_add_epi32(_mm_madd_epi16(load16(sums), factors), _mm_set1_epi32(kSumStart<kPlanes>)));
    }
}

// Sums of the first and second 16 activations of a group, as floats.
template <int kPlanes, int T>
inline void set_half_sums(const TileGroup<kPlanes, T>& x, float (&halves)[2][T]) {
  for (int h = 0; h < 2; ++h)
    for (int t = 0; t < T; ++t) {
      int sum = 0;
      for (int plane = 0; plane < kPlanes; ++plane) sum = 128 * sum + x.isum[plane][t][h];
      halves[h][t] = x.scale[t] * float(sum);
    }
}

// The sums of the next tile of three panels, twelve lines, two in each of a piece's first groups.
template <int T>
inline void ask_for_sums(const PanelSums<T>* next, int group) {
  for (int line = 0; line < 2; ++line)
    _mm_prefetch(reinterpret_cast<const char*>(next) + 128 * group + 64 * line, _MM_HINT_T0);
}

// Products of the groups' integers, then scales: sums[tile * P + panel] += panel . tile over n_groups groups of 32 k.
// More tokens at once are more sums that do not wait for each other.
// ask(g) with each group asks for memory that is needed next.
template <class Layout, int kPlanes, int P, int T, int kTiles = 1, class Ask>
inline void multiply_tile(const Panel* panels, const TilePiece<kPlanes, T>* tiles, int n_groups, PanelSums<T>* sums,
                          const Ask& ask) {
  constexpr int kGroup = Layout::kGroup, kHalves = 32 / kGroup, N = T * kTiles;
  // Two planes, measured: with more to add than one product a group, 5 %; with one, 10 % slower.
  constexpr bool kInPlace = kHalves == 2 || Layout::kHasMin;
  __m512 s[P][N];
#pragma GCC unroll 16
  for (int i = 0; i < P * N; ++i) s[i / N][i % N] = _mm512_load_ps(sums[i % N / T * P + i / N][i % T]);
  [[maybe_unused]] int32_t starts[kTiles][kPieceGroups][kHalves][kPlanes][T];
  if constexpr (Layout::kZero != 0)
    for (int i = 0; i < kTiles; ++i) set_starts<Layout>(tiles[i].group, n_groups, starts[i]);
  for (int g = 0; g < n_groups; ++g) {
    for (int tile = 0; tile < kTiles; ++tile) {
      const TileGroup<kPlanes, T>& x = tiles[tile].group[g];
#pragma GCC unroll 4
      for (size_t i = 0; i < sizeof x; i += 64)
        _mm_prefetch(reinterpret_cast<const char*>(&x) + kTiles * sizeof(TilePiece<kPlanes, T>) + i, _MM_HINT_T0);
    }
    ask(g);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      // Where registers allow, each plane has sums of its own: fewer waits for the sum before.
      constexpr int kChains = P * N <= 8 ? kPlanes : 1;
      __m512i acc[kChains][P][N];
#pragma GCC unroll 2
      for (int plane = 0; plane < kPlanes; plane += kChains) {
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t)
#pragma GCC unroll 2
          for (int chain = 0; chain < kChains; ++chain) {
            const __m512i start =
                _mm512_set1_epi32(Layout::kZero != 0 ? starts[t / T][g][h][plane + chain][t % T] : kSumStart<kPlanes>);
#pragma GCC unroll 3
            for (int p = 0; p < P; ++p) {
              __m512i& sum = acc[chain][p][t];
              if (plane == 0) {
                sum = start;
              } else {
                sum = _mm512_slli_epi32(sum, 7);
                if constexpr (Layout::kZero != 0) sum = _mm512_add_epi32(sum, start);
              }
            }
          }
#pragma GCC unroll 8
        for (int i = h * kGroup / 4; i < (h + 1) * kGroup / 4; ++i) {
          __m512i u[P];
#pragma GCC unroll 3
          for (int p = 0; p < P; ++p) u[p] = _mm512_load_si512(panels[p].u[8 * g + i]);
#pragma GCC unroll 8
          for (int t = 0; t < N; ++t)
#pragma GCC unroll 2
            for (int chain = 0; chain < kChains; ++chain) {
              const __m512i four = broadcast4(tiles[t / T].group[g].q[plane + chain][i][t % T]);
#pragma GCC unroll 3
              for (int p = 0; p < P; ++p) acc[chain][p][t] = _mm512_dpbusd_epi32(acc[chain][p][t], u[p], four);
            }
        }
      }
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) {
        const __m512 scale = _mm512_load_ps(panels[p].scale[kHalves * g + h]);
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) {
          const __m512 x_scale = _mm512_set1_ps(tiles[t / T].group[g].scale[t % T]);
          if constexpr (kPlanes == 1) {
            const __m512 offset = _mm512_load_ps(panels[p].offset[kHalves * g + h]);
            const __m512 weighted = _mm512_fmsub_ps(_mm512_castsi512_ps(acc[0][p][t]), scale, offset);
            s[p][t] = _mm512_fmadd_ps(weighted, x_scale, s[p][t]);
          } else {
            const __m512i sum = kChains == 2
                                    ? _mm512_add_epi32(_mm512_slli_epi32(acc[0][p][t], 7), acc[kChains - 1][p][t])
                                    : acc[0][p][t];
            const __m512 both = _mm512_mul_ps(scale, x_scale);
            if constexpr (kInPlace) {
              multiply_add(s[p][t], _mm512_cvtepi32_ps(sum), both);
            } else {
              s[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), both, s[p][t]);
            }
          }
        }
      }
    }
    if constexpr (Layout::kHasMin) {
      constexpr int kMinHalves = 32 / Layout::kMinGroup;
      float halves[kTiles][2][T];
      if constexpr (kMinHalves == 2)
        for (int i = 0; i < kTiles; ++i) set_half_sums(tiles[i].group[g], halves[i]);
#pragma GCC unroll 2
      for (int h = 0; h < kMinHalves; ++h)
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p) {
          const __m512 minimum = _mm512_load_ps(panels[p].minimum[kMinHalves * g + h]);
#pragma GCC unroll 8
          for (int t = 0; t < N; ++t) {
            const float sum = kMinHalves == 2 ? halves[t / T][h][t % T] : tiles[t / T].group[g].sum[t % T];
            multiply_add(s[p][t], minimum, _mm512_set1_ps(sum));
          }
        }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < P * N; ++i) _mm512_store_ps(sums[i % N / T * P + i / N][i % T], s[i / N][i % N]);
}

// How far ahead of their use a token's weights are asked for, into L2. From sixteen streams of which a processor reads
// a few lines each in turn the hardware runs ahead too little: without, Zen 4 decodes at two thirds of the speed.
constexpr int kAskedAhead = 512;  // bytes

// A sink that multiplies kK weights with one token as they come: the sums of groups that are under way stay in
// registers, and are added in the order of multiply_tile. Weights go to the panel only where kKeep.
template <class Layout, int kPlanes, bool kKeep, int kK = kPieceK>
struct TokenSink {
  static constexpr int kGroups = kK / Layout::kGroup;
  static constexpr int kQuads = Layout::kGroup / 4;
  const TileGroup<kPlanes, 1>* x;  // [kK / 32]
  Panel& panel;
  const int k;  // where in the panel
  __m512i acc[kPlanes][kGroups];
  alignas(64) int32_t sum[kGroups][kPanelRows];
  int32_t start[kGroups];
  const Rows* asked = nullptr;

  GRISTMILL_INLINE TokenSink(const TileGroup<kPlanes, 1>* groups, Panel& to, int from) : x(groups), panel(to), k(from) {
    if constexpr (Layout::kZero != 0)
      for (int g = 0; g < kGroups; ++g) start[g] = -Layout::kZero * sum_of(g);
  }
  // Of the token's integers in a group.
  GRISTMILL_INLINE int sum_of(int g) const {
    int all = 0;
    for (const auto& plane : x[g * Layout::kGroup / 32].isum)
      all = 128 * all + (Layout::kGroup == 32 ? plane[0][0] + plane[0][1] : plane[0][g % 2]);
    return all;
  }
  // Memory is asked for what follows these rows' bytes, a few lines with each four k.
  GRISTMILL_INLINE void ask_beyond(const Rows& rows) { asked = &rows; }
  template <class I>
  GRISTMILL_INLINE void ask_ahead(I i) const {
    if (!asked) return;
    constexpr int kLines = int(weight_bytes<typename Layout::Format>(kK) + 63) / 64;
    constexpr int kFirst = i * kPanelRows * kLines / (kK / 4), kEnd = (i + 1) * kPanelRows * kLines / (kK / 4);
    for_constants<kEnd - kFirst>([&](auto n) GRISTMILL_LAMBDA {
      constexpr int line = kFirst + n;
      _mm_prefetch(asked->at(line / kLines, kAskedAhead + line % kLines * 64), _MM_HINT_T1);
    });
  }
  template <class I>
  GRISTMILL_INLINE void set_u(I i, __m512i u) {
    constexpr int g = i / kQuads;
    ask_ahead(i);
    if constexpr (i % kQuads == 0)
      for (int p = 0; p < kPlanes; ++p)
        acc[p][g] = Layout::kZero != 0 && p == kPlanes - 1 ? _mm512_set1_epi32(start[g]) : _mm512_setzero_si512();
    for (int p = 0; p < kPlanes; ++p)
      acc[p][g] = _mm512_dpbusd_epi32(acc[p][g], u, broadcast4(x[i / 8].q[p][i % 8][0]));
    if constexpr (i % kQuads == kQuads - 1)
      _mm512_store_si512(
          sum[g], kPlanes == 1 ? acc[0][g] : _mm512_add_epi32(_mm512_slli_epi32(acc[0][g], 7), acc[kPlanes - 1][g]));
    if constexpr (kKeep) panel.set_u(k / 4 + i, u);
  }
  GRISTMILL_INLINE void set_scale(int group, __m512 x) { _mm512_store_ps(panel.scale[k / Layout::kGroup + group], x); }
  GRISTMILL_INLINE void set_minimum(int group, __m512 x) {
    _mm512_store_ps(panel.minimum[k / Layout::kMinGroup + group], x);
  }
  GRISTMILL_INLINE __m512 minimum(int group) const {
    return _mm512_load_ps(panel.minimum[k / Layout::kMinGroup + group]);
  }
  GRISTMILL_INLINE void add_to(PanelSums<1>& sums) {
    __m512 s = _mm512_load_ps(sums[0]);
    for_constants<kGroups>([&](auto g) GRISTMILL_LAMBDA {
      const TileGroup<kPlanes, 1>& group = x[g * Layout::kGroup / 32];
      const __m512 total = _mm512_cvtepi32_ps(_mm512_load_si512(sum[g]));
      const __m512 scale = _mm512_load_ps(panel.scale[k / Layout::kGroup + g]),
                   x_scale = _mm512_set1_ps(group.scale[0]);
      if constexpr (kPlanes == 1) {
        s = _mm512_fmadd_ps(_mm512_mul_ps(total, scale), x_scale, s);
      } else {
        s = _mm512_fmadd_ps(total, _mm512_mul_ps(scale, x_scale), s);
      }
      if constexpr (Layout::kHasMin && Layout::kGroup == 32)
        s = _mm512_fmadd_ps(minimum(g), _mm512_set1_ps(group.sum[0]), s);
      if constexpr (Layout::kHasMin && Layout::kGroup == 16 && g % 2 == 1) {
        float halves[2][1];
        set_half_sums(group, halves);
        s = _mm512_fmadd_ps(minimum(g - 1), _mm512_set1_ps(halves[0][0]), s);
        s = _mm512_fmadd_ps(minimum(g), _mm512_set1_ps(halves[1][0]), s);
      }
    });
    _mm512_store_ps(sums[0], s);
  }
};

// The upper bits of a tile's outliers: 128 scale * high * weight for one column each.
template <class Layout, int T>
inline void add_outliers(const Panel* panels, int n_panels, const TilePiece<1, T>& piece, PanelSums<T>* sums) {
  for (int i = 0; i < piece.n_outliers; ++i) {
    const TileOutlier& o = piece.outlier[i];
    const __m512 size = _mm512_set1_ps(128.0f * piece.group[o.k / 32].scale[o.token]);
    const __m512i high = _mm512_set1_epi32(int(uint32_t(uint8_t(o.high)) << (o.k % 4 * 8)));
    const __m512i offset = _mm512_set1_epi32(-Layout::kZero * o.high);
    for (int p = 0; p < n_panels; ++p) {
      const Panel& panel = panels[p];
      const __m512i product = _mm512_dpbusd_epi32(offset, _mm512_load_si512(panel.u[o.k / 4]), high);
      __m512 weight = _mm512_mul_ps(_mm512_cvtepi32_ps(product), _mm512_load_ps(panel.scale[o.k / Layout::kGroup]));
      if constexpr (Layout::kHasMin)
        weight = _mm512_fmadd_ps(_mm512_load_ps(panel.minimum[o.k / Layout::kMinGroup]), _mm512_set1_ps(float(o.high)),
                                 weight);
      float* sum = sums[p][o.token];
      _mm512_store_ps(sum, _mm512_fmadd_ps(weight, size, _mm512_load_ps(sum)));
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu
