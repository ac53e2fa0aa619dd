// Prefill: three panels by four tokens at a time. Panels of a piece stay in L1 for all tokens of the batch, its
// activations and the sums of a block of rows in L2.
#pragma once

#include "cpu/generic/elementwise.h"
#include "cpu/generic/next_weights.h"
#include "cpu/isa/avx2/multiply.h"
#include "cpu/isa/avx2/vec.h"

namespace gristmill::cpu {
namespace {

constexpr int64_t kTrioRows = kPanels * kPanelRows;
constexpr int64_t kBlockRows = 4 * kTrioRows;  // that share a pass over the activations

// Rows [r0, r1) of a task, at most kBlockRows: sums of pieces of 256 k.
template <class Layout, class Group>
class PrefillBlock {
  using Multiply = Products<Layout, Group>;
  using Panel = typename Multiply::Panel;
  using Piece = typename Multiply::Piece;
  using Sums = PanelSums[kPanels];

 public:
  // Bytes of scratch, aligned to 64.
  static size_t bytes(int64_t tiles) {
    return sizeof(Panel) * kPanels + size_t(kBlockRows / kTrioRows * tiles) * sizeof(Sums);
  }

  PrefillBlock(const MatmulTask& task, int64_t r0, int64_t r1, std::byte* scratch)
      : task_(task),
        r0_(r0),
        r1_(r1),
        trios_((r1 - r0 + kTrioRows - 1) / kTrioRows),
        tiles_(n_tiles(task.n)),
        panels_(reinterpret_cast<Panel*>(scratch)),
        sums_(reinterpret_cast<Sums*>(scratch + sizeof(Panel) * kPanels)) {
    std::memset(static_cast<void*>(sums_), 0, size_t(trios_ * tiles_) * sizeof(Sums));
  }

  // Weights [k0, k0 + 256) times x, which has a piece a tile.
  void add_piece(int64_t k0, const Piece* x) {
    const Weight& w = *task_.w;
    const int64_t n_k = std::min<int64_t>(kPieceK, w.n_cols - k0);
    const int n_groups = int((n_k + 31) / 32);
    for (int64_t trio = 0; trio < trios_; ++trio) {
      const int64_t r = r0_ + trio * kTrioRows;
      const int n_panels = int(std::min<int64_t>(kPanels, (r1_ - r + kPanelRows - 1) / kPanelRows));
      for (int p = 0; p < n_panels; ++p)
        unpack_piece<Layout>(w, r + p * kPanelRows, int(std::min<int64_t>(kPanelRows, r1_ - r - p * kPanelRows)), 1, k0,
                             n_k, panels_[p]);
      NextWeights<typename Layout::Format, kTrioRows, kPieceK> next(w, r0_, r1_, r, k0, tiles_);
      const auto all_tiles = [&]<int P>() {
        for (int64_t tile = 0; tile < tiles_; ++tile) {
          next.ask();
          Sums& to = sums_[trio * tiles_ + tile];
          multiply_tile<Layout, Group, P>(panels_, x[tile].group, n_groups, to);
          if constexpr (std::is_same_v<Piece, BytePiece>) add_outliers<Layout>(panels_, P, x[tile], to);
        }
      };
      n_panels == 3   ? all_tiles.template operator()<3>()
      : n_panels == 2 ? all_tiles.template operator()<2>()
                      : all_tiles.template operator()<1>();
    }
  }

  void write() const {
    const int64_t m = task_.w->n_rows;
    for (int64_t t = 0; t < task_.n; ++t)
      for (int64_t r = r0_; r < r1_; r += kPanelRows) {
        const int64_t panel = (r - r0_) / kPanelRows;
        const int n = int(std::min<int64_t>(kPanelRows, r1_ - r));
        const Sums& from = sums_[panel / kPanels * tiles_ + t / kTileTokens];
        __m256 y = _mm256_load_ps(from[panel % kPanels].of[t % kTileTokens]);
        if (task_.bias) y = _mm256_add_ps(y, load_some<Avx2Vec>(task_.bias + r, n));
        store_some<Avx2Vec>(task_.y + t * m + r, y, n);
      }
  }

 private:
  const MatmulTask& task_;
  int64_t r0_, r1_, trios_, tiles_;
  Panel* panels_;
  Sums* sums_;  // [trio of panels][tile]
};

template <class Format, Pass kPass>
void prefill_affine(const MatmulTask& task) {
  using Layout = PanelLayout<Format>;
  constexpr bool kBytes = kPass == Pass::kPrefill && Layout::kMaxCode <= 32;
  using Group = std::conditional_t<kBytes, ByteGroup, WordGroup>;
  using Input = std::conditional_t<kPass == Pass::kPrefill, BytePiece, WordPiece>;
  using Block = PrefillBlock<Layout, Group>;
  const int64_t tiles = n_tiles(task.n);
  constexpr bool kWidened = kPass == Pass::kPrefill && !kBytes;
  const size_t widened_bytes = kWidened ? size_t(tiles) * sizeof(WordPiece) : 0;
  std::byte* scratch = thread_scratch(widened_bytes + Block::bytes(tiles));
  for (int64_t r0 = task.row_begin; r0 < task.row_end; r0 += kBlockRows) {
    Block block(task, r0, std::min(task.row_end, r0 + kBlockRows), scratch + widened_bytes);
    const auto* x = reinterpret_cast<const Input*>(task.x);
    for (int64_t k0 = 0; k0 < task.w->n_cols; k0 += kPieceK, x += tiles) {
      if constexpr (kWidened) {
        auto* wide = reinterpret_cast<WordPiece*>(scratch);
        for (int64_t tile = 0; tile < tiles; ++tile) widen(x[tile], wide[tile]);
        block.add_piece(k0, wide);
      } else {
        block.add_piece(k0, x);
      }
    }
    block.write();
  }
}

}  // namespace
}  // namespace gristmill::cpu
