// Prefill: panels of 16 rows (panel.h) times tiles of four tokens (tile.h). The inner loop holds three panels by four
// tokens of integer sums in registers; one broadcast from memory feeds three vpdpbusd. Panels of a piece stay in L1 for
// all tokens of the batch, its activations and the sums of a block of rows in L2.
#pragma once

#include <algorithm>

#include "cpu/isa/avx512_vnni/panel.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanels = 3;
constexpr int64_t kBlockRows = 4 * kPanels * kPanelRows;  // that share a pass over the activations

inline __m512i broadcast4(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, 4);
  return _mm512_set1_epi32(four);
}

// Sums of one token tile with up to kPanels panels, float32 [panel][token][16 rows].
using TileSums = float[kPanels][kTileTokens][kPanelRows];

// Products of the groups' integers, then scales: sums += panels . tile over n_groups groups of 32 k.
template <class Layout, int kPlanes, int P>
inline void multiply_tile(const Panel* panels, const TileGroup<kPlanes>* groups, int n_groups, TileSums& sums) {
  constexpr int T = kTileTokens, kGroup = Layout::kGroup, kHalves = 32 / kGroup;
  __m512 s[P][T];
#pragma GCC unroll 16
  for (int i = 0; i < P * T; ++i) s[i / T][i % T] = _mm512_load_ps(sums[i / T][i % T]);
  // -kZero times the sums of a token's activations, where all of them start: broadcasts from memory cost no port that
  // multiplies, and all groups at once leave no wait between them.
  alignas(16) int32_t offsets[kPieceGroups][kHalves][kPlanes][T];
  if constexpr (Layout::kZero != 0) {
    for (int g = 0; g < n_groups; ++g)
#pragma GCC unroll 4
      for (int i = 0; i < kHalves * kPlanes; ++i) {
        const int half = i / kPlanes, plane = i % kPlanes;
        const uint32_t zero = -Layout::kZero & 0xffffu;
        const __m128i factors = _mm_set1_epi32(int(kGroup == 32 ? zero * 0x10001u : half ? zero * 0x10000u : zero));
        const __m128i sums16 = _mm_load_si128(reinterpret_cast<const __m128i*>(groups[g].isum[plane]));
        _mm_store_si128(reinterpret_cast<__m128i*>(offsets[g][half][plane]), _mm_madd_epi16(sums16, factors));
      }
  }
  for (int g = 0; g < n_groups; ++g) {
    const TileGroup<kPlanes>& x = groups[g];
#pragma GCC unroll 4
    for (size_t i = 0; i < sizeof x; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(&x) + sizeof(TilePiece<kPlanes>) + i, _MM_HINT_T0);
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      __m512i acc[P][T];
#pragma GCC unroll 2
      for (int plane = 0; plane < kPlanes; ++plane) {
        const int32_t* offset = offsets[g][h][plane];
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const __m512i start = Layout::kZero != 0 ? _mm512_set1_epi32(offset[t]) : _mm512_setzero_si512();
#pragma GCC unroll 3
          for (int p = 0; p < P; ++p) {
            if (plane == 0) {
              acc[p][t] = start;
            } else {
              acc[p][t] = _mm512_slli_epi32(acc[p][t], 7);
              if (Layout::kZero != 0) acc[p][t] = _mm512_add_epi32(acc[p][t], start);
            }
          }
        }
#pragma GCC unroll 8
        for (int i = h * kGroup / 4; i < (h + 1) * kGroup / 4; ++i) {
          __m512i u[P];
#pragma GCC unroll 3
          for (int p = 0; p < P; ++p) u[p] = _mm512_load_si512(panels[p].u[8 * g + i]);
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) {
            const __m512i four = broadcast4(x.q[plane][i][t]);
#pragma GCC unroll 3
            for (int p = 0; p < P; ++p) acc[p][t] = _mm512_dpbusd_epi32(acc[p][t], u[p], four);
          }
        }
      }
#pragma GCC unroll 3
      for (int p = 0; p < P; ++p) {
        const __m512 scale = _mm512_load_ps(panels[p].scale[kHalves * g + h]);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t)
          s[p][t] =
              _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc[p][t]), _mm512_mul_ps(scale, _mm512_set1_ps(x.scale[t])), s[p][t]);
      }
    }
    if constexpr (Layout::kHasMin) {
      constexpr int kMinHalves = 32 / Layout::kMinGroup;
      alignas(16) float halves[2][T];
      if constexpr (kMinHalves == 2) {
        for (int h = 0; h < 2; ++h) {
          const __m128i one = _mm_set1_epi32(h ? 0x10000 : 1);
          __m128i sum = _mm_setzero_si128();
          for (int plane = 0; plane < kPlanes; ++plane)
            sum = _mm_add_epi32(_mm_slli_epi32(sum, 7),
                                _mm_madd_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(x.isum[plane])), one));
          _mm_store_ps(halves[h], _mm_mul_ps(_mm_cvtepi32_ps(sum), _mm_load_ps(x.scale)));
        }
      }
#pragma GCC unroll 2
      for (int h = 0; h < kMinHalves; ++h) {
        const float* sum = kMinHalves == 2 ? halves[h] : x.sum;
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p) {
          const __m512 minimum = _mm512_load_ps(panels[p].minimum[kMinHalves * g + h]);
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t) s[p][t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(sum[t]), s[p][t]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < P * T; ++i) _mm512_store_ps(sums[i / T][i % T], s[i / T][i % T]);
}

// The upper bits of a tile's outliers: 128 scale * high * weight for one column each.
template <class Layout>
inline void add_outliers(const Panel* panels, int n_panels, const TilePiece<1>& piece, TileSums& sums) {
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

template <class Format, int kPlanes>
void prefill_affine(const MatmulTask& task) {
  using Layout = PanelLayout<Format>;
  using Piece = TilePiece<kPlanes>;
  const Weight& w = *task.w;
  const int64_t m = w.n_rows, tiles = n_tiles(task.n);
  const auto* x = reinterpret_cast<const Piece*>(task.x);
  constexpr int64_t kMaxTrios = kBlockRows / (kPanels * kPanelRows);
  const size_t sums_bytes = size_t(kMaxTrios * tiles) * sizeof(TileSums);
  std::byte* scratch = thread_scratch(sums_bytes + kPanels * sizeof(Panel));
  auto* sums = reinterpret_cast<TileSums*>(scratch);  // [trio of panels][tile]
  auto* panels = reinterpret_cast<Panel*>(scratch + sums_bytes);
  for (int64_t r0 = task.row_begin; r0 < task.row_end; r0 += kBlockRows) {
    const int64_t r1 = std::min(task.row_end, r0 + kBlockRows);
    const int64_t trios = (r1 - r0 + kPanels * kPanelRows - 1) / (kPanels * kPanelRows);
    std::memset(static_cast<void*>(sums), 0, size_t(trios * tiles) * sizeof(TileSums));
    for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK, x += tiles) {
      const int64_t n_k = std::min<int64_t>(kPieceK, w.n_cols - k0);
      const int n_groups = int((n_k + 31) / 32);
      for (int64_t trio = 0; trio < trios; ++trio) {
        const int64_t r = r0 + trio * kPanels * kPanelRows;
        const int n_panels = int(std::min<int64_t>(kPanels, (r1 - r + kPanelRows - 1) / kPanelRows));
        for (int p = 0; p < n_panels; ++p)
          pack_panel<Format>(w, r + p * kPanelRows, int(std::min<int64_t>(kPanelRows, r1 - r - p * kPanelRows)), k0,
                             n_k, panels[p]);
        const auto all_tiles = [&]<int P>() {
          for (int64_t tile = 0; tile < tiles; ++tile) {
            TileSums& to = sums[trio * tiles + tile];
            multiply_tile<Layout, kPlanes, P>(panels, x[tile].group, n_groups, to);
            if constexpr (kPlanes == 1) add_outliers<Layout>(panels, P, x[tile], to);
          }
        };
        n_panels == 3   ? all_tiles.template operator()<3>()
        : n_panels == 2 ? all_tiles.template operator()<2>()
                        : all_tiles.template operator()<1>();
      }
    }
    x -= n_pieces(w.n_cols) * tiles;
    for (int64_t t = 0; t < task.n; ++t)
      for (int64_t trio = 0; trio < trios; ++trio) {
        const auto& from = sums[trio * tiles + t / kTileTokens];
#pragma GCC unroll 3
        for (int p = 0; p < kPanels; ++p) {
          const int64_t r = r0 + (trio * kPanels + p) * kPanelRows;
          const __mmask16 mask = first_lanes(r1 - r);
          __m512 y = _mm512_load_ps(from[p][t % kTileTokens]);
          if (task.bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, task.bias + r));
          _mm512_mask_storeu_ps(task.y + t * m + r, mask, y);
        }
      }
  }
}

}  // namespace
}  // namespace gristmill::cpu
