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

// y of a panel's rows r, r + distance, ... for token t.
inline void store_rows(const MatmulTask& task, int t, int64_t r, int n_rows, int64_t distance, const float* sums) {
  float* y = task.y + t * task.w->n_rows + r;
  if (!task.bias) {
    for (int i = 0; i < n_rows; ++i) y[i * distance] = sums[i];
  } else {
    for (int i = 0; i < n_rows; ++i) y[i * distance] = sums[i] + task.bias[r + i * distance];
  }
}

// Adds weights [k0, k0 + n_k) of a panel's rows times a token's piece.
template <class Layout, bool kKeep, int kPlanes>
inline void add_piece(const Weight& w, int64_t r, int n_rows, int64_t distance, int64_t k0, int64_t n_k,
                      const TilePiece<kPlanes, 1>& x, Panel& panel, PanelSums<1>& sums) {
  if (!kHasParts<Layout> || n_k == kPieceK) {
    TokenSink<Layout, kPlanes, kKeep> sink(x.group, panel, 0);
    unpack_blocks<Layout>(w, r, n_rows, distance, k0, n_k, sink);
    sink.add_to(sums);
  } else if constexpr (kHasParts<Layout>) {
    for (int k = 0; k < n_k; k += kPartK) {
      TokenSink<Layout, kPlanes, kKeep, kPartK> sink(x.group + k / 32, panel, k);
      unpack_blocks<Layout, kPartBlocks<Layout>>(w, r, n_rows, distance, k0 + k, std::min<int64_t>(kPartK, n_k - k),
                                                 sink);
      sink.add_to(sums);
    }
  }
}

template <class Layout, int kPlanes>
inline void decode_token(const MatmulTask& task, int64_t r, int n_rows, int64_t distance, Panel& panel) {
  const Weight& w = *task.w;
  const auto* x = reinterpret_cast<const TilePiece<kPlanes, 1>*>(task.x);
  alignas(64) PanelSums<1> sums = {};
  for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK, ++x) {
    const int64_t n_k = std::min<int64_t>(kPieceK, w.n_cols - k0);
    if constexpr (kPlanes == 1) {
      if (x->n_outliers > 0) {
        add_piece<Layout, true>(w, r, n_rows, distance, k0, n_k, *x, panel, sums);
        add_outliers<Layout, 1>(&panel, 1, *x, &sums);
        continue;
      }
    }
    add_piece<Layout, false>(w, r, n_rows, distance, k0, n_k, *x, panel, sums);
  }
  store_rows(task, 0, r, n_rows, distance, sums[0]);
}

// The lines of a row's 256 weights from k on; beyond a row's end its lane goes on with the next, whose first lines
// these then are, and beyond the last row's there is nothing, which is asked for in vain. While sums of several tokens
// are made nothing else reads memory.
template <class Layout>
GRISTMILL_INLINE void ask_for_piece(const Weight& w, int64_t row, int64_t k) {
  using Format = typename Layout::Format;
  const uintptr_t p =
      reinterpret_cast<uintptr_t>(w.data) + uintptr_t(row * weight_bytes<Format>(w.n_cols) + weight_bytes<Format>(k));
  for (uintptr_t i = 0; i < uintptr_t(weight_bytes<Format>(kPieceK)); i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
}

// Two to eight tokens: one tile or two.
template <class Layout, int kPlanes, int kTiles>
inline void decode_tiles(const MatmulTask& task, int64_t r, int n_rows, int64_t distance, Panel& panel) {
  constexpr int T = kTileTokens;
  const Weight& w = *task.w;
  const auto* x = reinterpret_cast<const TilePiece<kPlanes, T>*>(task.x);
  alignas(64) PanelSums<T> sums[kTiles] = {};
  for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK, x += kTiles) {
    const int64_t n_k = std::min<int64_t>(kPieceK, w.n_cols - k0);
    unpack_piece<Layout>(w, r, n_rows, distance, k0, n_k, panel);
    const auto ask = [&](int group) GRISTMILL_LAMBDA {
      for (int row = 2 * group; row < std::min(2 * group + 2, n_rows); ++row)
        ask_for_piece<Layout>(w, r + row * distance, k0 + kPieceK);
    };
    multiply_tile<Layout, kPlanes, 1, T, kTiles>(&panel, x, int((n_k + 31) / 32), sums, ask);
    if constexpr (kPlanes == 1)
      for (int tile = 0; tile < kTiles; ++tile) add_outliers<Layout, T>(&panel, 1, x[tile], sums + tile);
  }
  for (int t = 0; t < task.n; ++t) store_rows(task, t, r, n_rows, distance, sums[t / T][t % T]);
}

template <class Format, int kPlanes>
void decode_affine(const MatmulTask& task) {
  using Layout = PanelLayout<Format>;
  static_assert(kDecodeRows == 2 * kTileTokens);
  Panel panel;
  for (int64_t r = task.row_begin; r < task.row_end;) {
    const int64_t left = task.row_end - r, distance = lane_distance(left, task.w->row_bytes());
    const int n_rows = int(std::min<int64_t>(kPanelRows, left));
    for (int64_t i = r; i < r + distance; ++i) {
      if (task.n == 1) {
        decode_token<Layout, kPlanes>(task, i, n_rows, distance, panel);
      } else if (task.n <= kTileTokens) {
        decode_tiles<Layout, kPlanes, 1>(task, i, n_rows, distance, panel);
      } else {
        decode_tiles<Layout, kPlanes, 2>(task, i, n_rows, distance, panel);
      }
    }
    r += n_rows * distance;
  }
}

}  // namespace
}  // namespace gristmill::cpu
