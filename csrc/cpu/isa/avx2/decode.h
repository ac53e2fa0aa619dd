// Decoding one to eight tokens: the weights pass once, as the file holds them. One token multiplies them as they are
// unpacked; more share a panel that stays in L1.
#pragma once

#include "cpu/generic/lanes.h"
#include "cpu/isa/avx2/multiply.h"
#include "cpu/isa/avx2/token.h"

namespace gristmill::cpu {
namespace {

// Rows r, r + distance, ... with one token.
template <class Layout>
inline void decode_token(const MatmulTask& task, int64_t r, int n_rows, int64_t distance) {
  const Weight& w = *task.w;
  const auto* x = reinterpret_cast<const TokenPiece*>(task.x);
  __m256 sum = _mm256_setzero_ps();
  for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK, ++x) {
    TokenSink<Layout> sink(*x);
    unpack_piece<Layout>(w, r, n_rows, distance, k0, std::min<int64_t>(kPieceK, w.n_cols - k0), sink);
    sum = sink.add_to(sum);
  }
  alignas(32) float y[kPanelRows];
  _mm256_store_ps(y, sum);
  for (int i = 0; i < n_rows; ++i) {
    const int64_t row = r + i * distance;
    task.y[row] = y[i] + (task.bias ? task.bias[row] : 0.0f);
  }
}

template <class Layout>
inline void decode_tokens(const MatmulTask& task, int64_t r, int n_rows, int64_t distance) {
  const Weight& w = *task.w;
  const int64_t tiles = n_tiles(task.n);
  const auto* x = reinterpret_cast<const WordPiece*>(task.x);
  WordPanel<Layout> panel;
  PanelSums sums[(kDecodeRows + kTileTokens - 1) / kTileTokens] = {};
  for (int64_t k0 = 0; k0 < w.n_cols; k0 += kPieceK, x += tiles) {
    const int64_t n_k = std::min<int64_t>(kPieceK, w.n_cols - k0);
    unpack_piece<Layout>(w, r, n_rows, distance, k0, n_k, panel);
    for (int64_t tile = 0; tile < tiles; ++tile)
      multiply_tile<Layout, WordGroup, 1>(&panel, x[tile].group, kPieceGroups, &sums[tile]);
  }
  for (int t = 0; t < task.n; ++t)
    for (int i = 0; i < n_rows; ++i) {
      const int64_t row = r + i * distance;
      task.y[t * w.n_rows + row] = sums[t / kTileTokens].of[t % kTileTokens][i] + (task.bias ? task.bias[row] : 0.0f);
    }
}

template <class Format>
void decode_affine(const MatmulTask& task) {
  using Layout = PanelLayout<Format>;
  for (int64_t r = task.row_begin; r < task.row_end;) {
    const int64_t left = task.row_end - r, distance = lane_distance(left, task.w->row_bytes(), kPanelRows);
    const int n_rows = int(std::min<int64_t>(kPanelRows, left));
    for (int64_t i = 0; i < distance; ++i)
      task.n == 1 ? decode_token<Layout>(task, r + i, n_rows, distance)
                  : decode_tokens<Layout>(task, r + i, n_rows, distance);
    r += n_rows * distance;
  }
}

inline int64_t decode_bytes(int64_t n_cols, int64_t n_tokens) {
  return n_tokens > 1 ? tile_bytes<WordPiece>(n_cols, n_tokens) : n_pieces(n_cols) * int64_t(sizeof(TokenPiece));
}
inline void quantize_decode_tile(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  n_tokens > 1 ? quantize_tile<WordPiece>(x, n_cols, n_tokens, tile, out) : quantize_token(x, n_cols, out);
}

}  // namespace
}  // namespace gristmill::cpu
