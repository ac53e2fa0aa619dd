// Prefill: three panels by four tokens at a time. Panels of a piece stay in L1 for all tokens of the batch, its
// activations and the sums of a block of rows in L2.
#pragma once

#include "cpu/generic/next_weights.h"
#include "cpu/isa/avx512_vnni/multiply.h"
#include "cpu/isa/avx512_vnni/words.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanels = 3;
constexpr int64_t kTrioRows = kPanels * kPanelRows;
constexpr int64_t kBlockRows = 4 * kTrioRows;  // that share a pass over the activations

// What a block of rows is multiplied by: a panel, a tile of activations, and the product of both.
template <class Format, int kPlanes>
struct AffineOperands {
  using Layout = PrefillLayout<Format>;
  using Next = NextWeights<Format, kTrioRows, kPieceK>;
  using Panel = cpu::Panel;
  using Piece = TilePiece<kPlanes, kTileTokens>;
  static void unpack(const Weight& w, int64_t r, int n_rows, int64_t k0, int64_t n_k, Panel& panel) {
    unpack_piece<Layout>(w, r, n_rows, 1, k0, n_k, panel);
  }
  template <int P>
  static void multiply(const Panel* panels, const Piece& piece, int n_groups, PanelSums<kTileTokens>* sums,
                       Next& next) {
    multiply_tile<Layout, kPlanes, P, kTileTokens>(panels, &piece, n_groups, sums, [&](int g) GRISTMILL_LAMBDA {
      if constexpr (P == 3) ask_for_sums(sums + P, g);
      next.ask();
    });
    if constexpr (kPlanes == 1) add_outliers<Layout, kTileTokens>(panels, P, piece, sums);
  }
};

template <class Format>
struct WordOperands {
  using Next = NextWeights<Format, kTrioRows, kPieceK>;
  using Panel = WordPanel;
  using Piece = WordPiece;
  static void unpack(const Weight& w, int64_t r, int n_rows, int64_t k0, int64_t n_k, Panel& panel) {
    unpack_blocks<WordLayout<Format>>(w, r, n_rows, 1, k0, n_k, panel);
  }
  template <int P>
  static void multiply(const Panel* panels, const Piece& piece, int n_groups, PanelSums<kTileTokens>* sums,
                       Next& next) {
    for (int g = 0; g < n_groups; ++g) next.ask();
    multiply_words<P>(panels, piece, n_groups, sums);
  }
};

// memset() would take longer to start than to write.
inline void clear(PanelSums<kTileTokens> (&sums)[kPanels]) {
#pragma GCC unroll 12
  for (int i = 0; i < kPanels * kTileTokens; ++i)
    _mm512_store_ps(sums[i / kTileTokens][i % kTileTokens], _mm512_setzero_ps());
}

// The lines that store_tile will write.
inline void ask_for_tile(const MatmulTask& task, int64_t tile, int64_t r) {
  for (int t = 0; t < kTileTokens && tile * kTileTokens + t < task.n; ++t)
    for (int p = 0; p < kPanels; ++p)
      __builtin_prefetch(task.y + (tile * kTileTokens + t) * task.w->n_rows + r + p * kPanelRows);
}

// y of up to kPanels panels of rows from r on, for the tokens of a tile. Written between products, whose arithmetic
// hides the wait for lines that no cache holds.
inline void store_tile(const MatmulTask& task, int64_t tile, int64_t r, int64_t end,
                       const PanelSums<kTileTokens>* sums) {
  const int64_t m = task.w->n_rows;
  for (int t = 0; t < kTileTokens && tile * kTileTokens + t < task.n; ++t)
#pragma GCC unroll 3
    for (int p = 0; p < kPanels; ++p) {
      const int64_t row = r + p * kPanelRows;
      const __mmask16 mask = first_lanes(end - row);
      __m512 y = _mm512_load_ps(sums[p][t]);
      if (task.bias) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, task.bias + row));
      _mm512_mask_storeu_ps(task.y + (tile * kTileTokens + t) * m + row, mask, y);
    }
}

template <class Operands>
void prefill(const MatmulTask& task) {
  using Sums = PanelSums<kTileTokens>[kPanels];
  using Piece = typename Operands::Piece;
  using Panel = typename Operands::Panel;
  const Weight& w = *task.w;
  const int64_t tiles = n_tiles(task.n, kTileTokens);
  const size_t sums_bytes = size_t(kBlockRows / kTrioRows * tiles) * sizeof(Sums);
  std::byte* scratch = thread_scratch(sums_bytes + kPanels * sizeof(Panel));
  auto* sums = reinterpret_cast<Sums*>(scratch);  // [trio of panels][tile]
  auto* panels = reinterpret_cast<Panel*>(scratch + sums_bytes);
  for (int64_t r0 = task.row_begin; r0 < task.row_end; r0 += kBlockRows) {
    const int64_t r1 = std::min(task.row_end, r0 + kBlockRows);
    const int64_t trios = (r1 - r0 + kTrioRows - 1) / kTrioRows;
    const auto* x = reinterpret_cast<const Piece*>(task.x);
    for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK, x += tiles) {
      const int64_t n_k = std::min<int64_t>(kPieceK, w.n_cols - k0);
      const int n_groups = int((n_k + 31) / 32);
      for (int64_t trio = 0; trio < trios; ++trio) {
        const int64_t r = r0 + trio * kTrioRows;
        const int n_panels = int(std::min<int64_t>(kPanels, (r1 - r + kPanelRows - 1) / kPanelRows));
        for (int p = 0; p < n_panels; ++p)
          Operands::unpack(w, r + p * kPanelRows, int(std::min(int64_t(kPanelRows), r1 - r - p * kPanelRows)), k0, n_k,
                           panels[p]);
        const bool last_piece = k0 + kPieceK >= w.n_cols;
        typename Operands::Next next(w, r0, r1, r, k0, tiles * n_groups);
        const auto all_tiles = [&]<int P>() {
          for (int64_t tile = 0; tile < tiles; ++tile) {
            Sums& to = sums[trio * tiles + tile];
            if (k0 == 0) clear(to);
            if (last_piece) ask_for_tile(task, tile, r);
            Operands::template multiply<P>(panels, x[tile], n_groups, to, next);
            if (last_piece) store_tile(task, tile, r, r1, to);
          }
        };
        n_panels == 3   ? all_tiles.template operator()<3>()
        : n_panels == 2 ? all_tiles.template operator()<2>()
                        : all_tiles.template operator()<1>();
      }
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu
