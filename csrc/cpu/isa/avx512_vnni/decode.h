// Decoding one to eight tokens: the weights pass once, as the file holds them. One token multiplies them as they are
// unpacked; more share a panel that stays in L1.
#pragma once

#include "cpu/isa/avx512_vnni/multiply.h"

namespace gristmill::cpu {
namespace {

// How many rows apart the sixteen lanes of a panel are, of `left` rows: each lane then reads on where it stopped, one
// of sixteen streams that the hardware runs ahead of, which it does not for sixteen rows in a few pages.
inline int64_t lane_distance(int64_t left, int64_t row_bytes) {
  int64_t distance = std::max<int64_t>(1, left / kPanelRows);
  // Streams that lie a multiple of 4 KiB apart would share the few places of L1.
  while (distance > 1 && (distance * row_bytes + 128) % 4096 < 256) --distance;
  return distance;
}

template <class Layout, int T>
inline void decode_panel(const MatmulTask& task, int64_t r, int n_rows, int64_t distance, Panel& panel) {
  constexpr int kMostTiles = T == 1 ? 1 : (kDecodeRows + T - 1) / T;
  const Weight& w = *task.w;
  const int64_t m = w.n_rows, tiles = n_tiles(task.n, T);
  const auto* x = reinterpret_cast<const TilePiece<2, T>*>(task.x);
  alignas(64) PanelSums<T> sums[kMostTiles] = {};
  for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK, x += tiles) {
    const int64_t n_k = std::min<int64_t>(kPieceK, w.n_cols - k0);
    if constexpr (T == 1) {
      if (!kHasParts<Layout> || n_k == kPieceK) {
        TokenSink<Layout> sink(x->group);
        unpack_blocks<Layout>(w, r, n_rows, distance, k0, n_k, sink);
        sink.add_to(sums[0]);
      } else if constexpr (kHasParts<Layout>) {
        for (int64_t k = 0; k < n_k; k += kPartK) {
          TokenSink<Layout, kPartK> sink(x->group + k / 32);
          unpack_blocks<Layout, kPartBlocks<Layout>>(w, r, n_rows, distance, k0 + k, std::min<int64_t>(kPartK, n_k - k),
                                                     sink);
          sink.add_to(sums[0]);
        }
      }
    } else {
      unpack_piece<Layout>(w, r, n_rows, distance, k0, n_k, panel);
      for (int64_t tile = 0; tile < tiles; ++tile)
        multiply_tile<Layout, 2, 1, T>(&panel, x[tile].group, int((n_k + 31) / 32), &sums[tile]);
    }
  }
  for (int t = 0; t < task.n; ++t)
    for (int i = 0; i < n_rows; ++i) {
      const int64_t row = r + i * distance;
      task.y[t * m + row] = sums[t / T][t % T][i] + (task.bias ? task.bias[row] : 0.0f);
    }
}

template <class Layout, int T>
inline void decode_rows(const MatmulTask& task, Panel& panel) {
  for (int64_t r = task.row_begin; r < task.row_end;) {
    const int64_t left = task.row_end - r, distance = lane_distance(left, task.w->row_bytes());
    const int n_rows = int(std::min<int64_t>(kPanelRows, left));
    for (int64_t i = 0; i < distance; ++i) decode_panel<Layout, T>(task, r + i, n_rows, distance, panel);
    r += n_rows * distance;
  }
}

template <class Format>
void decode_affine(const MatmulTask& task) {
  Panel panel;
  if (task.n == 1) {
    decode_rows<PanelLayout<Format>, 1>(task, panel);
  } else {
    decode_rows<PanelLayout<Format>, kTileTokens>(task, panel);
  }
}

}  // namespace
}  // namespace gristmill::cpu
