// Activations as vpdpbusd wants them: tiles of T tokens (four in a batch, one alone), cut into pieces of 256 and groups
// of 32 k with a scale a token.
//   15 bit  two int8 planes, 128 hi + lo: vpdpbusd multiplies both with the same weights, a shift by 7 joins the sums
//   8 bit   one plane; a value that stands out of its group keeps its upper bits in a list beside (outliers.h)
// Four k of a token lie side by side, the tokens one after the other: the operand that vpdpbusd broadcasts.
//   piece 0 of tile 0, piece 0 of tile 1, ...; piece 1 of tile 0, ...        zeros behind the last k
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "cpu/generic/outliers.h"
#include "cpu/isa/avx512_vnni/panel.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

constexpr int kTileTokens = 4;
constexpr int kPieceGroups = kPieceK / 32;

template <int kPlanes, int T>
struct alignas(T == 1 ? 4 : 16) TileGroup {
  int8_t q[kPlanes][8][T][4];
  float scale[T];
  float sum[T];                 // scale * sum of values, without what the outliers list
  int16_t isum[kPlanes][T][2];  // sums of a plane's first and second 16
};

// Upper bits that q lacks: the value is scale * (128 high + q).
struct TileOutlier {
  uint8_t token, k;
  int8_t high;
};

template <int kPlanes, int T>
struct alignas(64) TilePiece {
  TileGroup<kPlanes, T> group[kPieceGroups];
  int n_outliers;
  TileOutlier outlier[kPlanes == 1 ? T * kMaxOutliers : 1];
};

inline int64_t n_tiles(int64_t n_tokens, int tile) { return (n_tokens + tile - 1) / tile; }
inline int64_t n_pieces(int64_t n_cols) { return (n_cols + kPieceK - 1) / kPieceK; }

inline __mmask16 first_lanes(int64_t n) { return __mmask16(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

template <class Piece>
inline int64_t tile_bytes(int64_t n_cols, int64_t n_tokens) {
  return n_pieces(n_cols) * n_tiles(n_tokens, kTileTokens) * int64_t(sizeof(Piece));
}
// In decoding a token alone has tiles of one: its activations are read from one stream.
template <int kPlanes>
inline int64_t decode_tile_bytes(int64_t n_cols, int64_t n_tokens) {
  if (n_tokens > 1) return tile_bytes<TilePiece<kPlanes, kTileTokens>>(n_cols, n_tokens);
  return n_pieces(n_cols) * int64_t(sizeof(TilePiece<kPlanes, 1>));
}

}  // namespace
}  // namespace gristmill::cpu
