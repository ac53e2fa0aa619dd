// Decoding one to eight tokens: the weights pass once, as the file holds them. One token multiplies them as they are
// unpacked; more share a panel that stays in L1.
#pragma once

#include "cpu/generic/ask.h"
#include "cpu/generic/lanes.h"
#include "cpu/isa/avx512_vnni/multiply.h"
#include "cpu/isa/avx512_vnni/vec.h"

namespace gristmill::cpu {
namespace {

// Sums of up to sixteen neighbouring rows of each lane, for kTokens tokens. They go to y a line at a time: sixteen
// floats stored each where it belongs, row after row, keep sixteen more lines under way beside the streams of weights.
template <int kTokens>
struct LaneSums {
  static constexpr int kRows = 16;
  alignas(64) float of[kRows][kTokens][kPanelRows];

  // To rows r, ..., r + n - 1 and those `distance`, 2 * distance, ... further on, n_lanes in all.
  void store(const MatmulTask& task, int64_t r, int n, int n_lanes, int64_t distance) const {
    const __mmask16 mask = first_lanes(n);
    for (int t = 0; t < task.n; ++t) {
      __m512 lane[kRows];
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) lane[i] = _mm512_maskz_load_ps(i < n ? 0xffff : 0, of[i][t]);
      Avx512Vec::transpose(lane);
      float* y = task.y + t * task.w->n_rows + r;
#pragma GCC unroll 16
      for (int i = 0; i < kPanelRows; ++i) {
        if (i == n_lanes) break;
        const int64_t to = i * distance;
        if (task.bias) lane[i] = _mm512_add_ps(lane[i], _mm512_maskz_loadu_ps(mask, task.bias + r + to));
        _mm512_mask_storeu_ps(y + to, mask, lane[i]);
      }
    }
  }
};

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

// Asks for a piece of every lane, one after the other. An address that runs on: one computed for each lane costs eight
// tokens 4 to 8 %.
template <class Format>
class LaneAsker {
 public:
  // From column k of row r on.
  GRISTMILL_INLINE LaneAsker(const Weight& w, int64_t r, int64_t distance, int64_t k)
      : p_(weight_address<Format>(w, r, k)), stride_(uintptr_t(distance * weight_bytes<Format>(w.n_cols))) {}
  GRISTMILL_INLINE void ask() {
    ask_for<Cache::kL1>(p_, weight_bytes<Format>(kPieceK));
    p_ += stride_;
  }

 private:
  uintptr_t p_, stride_;
};

template <class Layout, int kPlanes>
inline void decode_token(const MatmulTask& task, int64_t r, int n_rows, int64_t distance, Panel& panel,
                         PanelSums<1>& sums) {
  const Weight& w = *task.w;
  const auto* x = reinterpret_cast<const TilePiece<kPlanes, 1>*>(task.x);
  std::memset(sums, 0, sizeof sums);
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
}

// Two to eight tokens: one tile or two. While their sums are made nothing else reads memory, so the next piece is asked
// for; after a row's last it is the first of the next row, with which its lane goes on.
template <class Layout, int kPlanes, int kTiles>
inline void decode_tiles(const MatmulTask& task, int64_t r, int n_rows, int64_t distance, Panel& panel,
                         PanelSums<kTileTokens>* sums) {
  using Format = typename Layout::Format;
  constexpr int T = kTileTokens;
  const Weight& w = *task.w;
  const auto* x = reinterpret_cast<const TilePiece<kPlanes, T>*>(task.x);
  std::memset(sums, 0, kTiles * sizeof *sums);
  for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK, x += kTiles) {
    const int64_t n_k = std::min<int64_t>(kPieceK, w.n_cols - k0);
    unpack_piece<Layout>(w, r, n_rows, distance, k0, n_k, panel);
    LaneAsker<Format> lanes(w, r, distance, k0 + kPieceK);
    const auto ask = [&](int group) GRISTMILL_LAMBDA {
      if (2 * group >= n_rows) return;
      lanes.ask();
      lanes.ask();
    };
    multiply_tile<Layout, kPlanes, 1, T, kTiles>(&panel, x, int((n_k + 31) / 32), sums, ask);
    if constexpr (kPlanes == 1)
      for (int tile = 0; tile < kTiles; ++tile) add_outliers<Layout, T>(&panel, 1, x[tile], sums + tile);
  }
}

// kTiles: of four tokens; none for one token.
template <class Layout, int kPlanes, int kTiles>
void decode_lanes(const MatmulTask& task) {
  LaneSums<std::max(1, kTiles * kTileTokens)> sums;
  Panel panel;
  for (int64_t r = task.row_begin; r < task.row_end;) {
    const int64_t left = task.row_end - r, distance = lane_distance(left, task.w->row_bytes(), kPanelRows);
    const int n_lanes = int(std::min<int64_t>(kPanelRows, left));
    for (int64_t i = 0; i < distance; i += sums.kRows) {
      const int n = int(std::min<int64_t>(sums.kRows, distance - i));
      for (int j = 0; j < n; ++j) {
        if constexpr (kTiles == 0) {
          decode_token<Layout, kPlanes>(task, r + i + j, n_lanes, distance, panel, sums.of[j]);
        } else {
          decode_tiles<Layout, kPlanes, kTiles>(task, r + i + j, n_lanes, distance, panel,
                                                reinterpret_cast<PanelSums<kTileTokens>*>(sums.of[j]));
        }
      }
      sums.store(task, r + i, n, n_lanes, distance);
    }
    r += n_lanes * distance;
  }
}

template <class Format, int kPlanes>
void decode_affine(const MatmulTask& task) {
  using Layout = PanelLayout<Format>;
  static_assert(kDecodeRows == 2 * kTileTokens);
  if (task.n == 1) return decode_lanes<Layout, kPlanes, 0>(task);
  task.n <= kTileTokens ? decode_lanes<Layout, kPlanes, 1>(task) : decode_lanes<Layout, kPlanes, 2>(task);
}

}  // namespace
}  // namespace gristmill::cpu
