// Both operands as bfloat16, one plane or two. Of two planes each side hi hi + hi lo + lo hi are multiplied; lo lo
// would be below what lo rounds away.
//   weights       [step of 32 k][plane][16 rows][32], of 16 rows
//   activations   [piece][tile of 16 tokens][step of 32 k][plane][16 pairs of k][16 tokens][2]
// Activations that are not there are zeros. Weights lie as in the file, so that unpacking turns nothing: activations
// are turned, once a batch.
#pragma once

#include <algorithm>

#include "cpu/generic/ask.h"
#include "cpu/isa/amx_bf16/row_formats.h"
#include "cpu/isa/avx512_vnni/tile.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {
namespace {

constexpr int kTokens = 16;  // of a tile

// Steps of a piece, by the planes of activations: so many that two panels (16 rows) of weights fit L1. The more there
// are, the less often sums go to L2 and come back, which costs as much as five steps.
constexpr int piece_steps(int planes) { return planes == 1 ? 16 : 8; }
constexpr int64_t piece_columns(int planes) { return piece_steps(planes) * kStepK; }

template <int kPlanes, int kSteps>
struct alignas(64) Bf16Piece {
  Bf16Tile tile[kSteps][kPlanes];
};
template <int kPlanes>
using TokenPiece = Bf16Piece<kPlanes, piece_steps(kPlanes)>;
inline int64_t n_token_tiles(int64_t n_tokens) { return (n_tokens + kTokens - 1) / kTokens; }
inline int64_t pieces_of(int64_t n_cols, int planes) { return (n_cols - 1) / piece_columns(planes) + 1; }

// ---- activations ----

template <int kPlanes>
inline int64_t token_bytes(int64_t n_cols, int64_t n_tokens) {
  return pieces_of(n_cols, kPlanes) * n_token_tiles(n_tokens) * int64_t(sizeof(TokenPiece<kPlanes>));
}

// 16 lines of 16 dwords, pairs of bfloat16: line i of `to` is the lines' dword i.
GRISTMILL_INLINE void turn(const Bf16Tile& from, Bf16Tile& to) {
  Rows lines(reinterpret_cast<const uint8_t*>(from), sizeof from[0]);
  for_words<16>(lines, [&](auto i, __m512i x) GRISTMILL_LAMBDA { _mm512_store_si512(to[i], x); });
}

// Tile `tile` of x [n_tokens, n_cols].
template <int kPlanes>
inline void round_tokens(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  auto* pieces = reinterpret_cast<TokenPiece<kPlanes>*>(out) + tile;
  for (int64_t p = 0; p < pieces_of(n_cols, kPlanes); ++p) {
    TokenPiece<kPlanes>& piece = pieces[p * n_token_tiles(n_tokens)];
    for (int s = 0; s < piece_steps(kPlanes); ++s) {
      const int64_t k = p * piece_columns(kPlanes) + s * kStepK;
      alignas(64) Bf16Tile lines[kPlanes];
      for (int t = 0; t < kTokens; ++t) {
        const int64_t token = tile * kTokens + t, left = token < n_tokens ? n_cols - k : 0;
        // No address is formed where there is nothing.
        const float* at = left > 0 ? x + token * n_cols + k : x;
        set_line<kPlanes>(lines, t, _mm512_maskz_loadu_ps(first_lanes(left), at),
                          _mm512_maskz_loadu_ps(first_lanes(left - 16), left > 16 ? at + 16 : x));
      }
      for (int plane = 0; plane < kPlanes; ++plane) turn(lines[plane], piece.tile[s][plane]);
    }
  }
}

// ---- weights ----

// The panels of a piece, a row at a time: between products of the piece before, which leave the vector ports free.
template <class Format, int kPlanes, int kSteps>
class WeightUnpacker {
 public:
  // Rows [r, end) and columns [k0, k0 + n_k) of w; one panel after the other of `to`. What is unpacked after them,
  // from row next_r and column next_k0 on, is asked for meanwhile: rows are far apart for what is read of each, so the
  // hardware does not run ahead. Rows that do not exist are left as they are: their sums go nowhere.
  void begin(const Weight& w, int64_t r, int64_t end, int64_t k0, int64_t n_k, int64_t next_r, int64_t next_k0,
             Bf16Piece<kPlanes, kSteps>* to) {
    row_bytes_ = weight_bytes<Format>(w.n_cols);
    p_ = reinterpret_cast<const uint8_t*>(w.data) + r * row_bytes_ + weight_bytes<Format>(k0);
    next_ = (next_r - r) * row_bytes_ + weight_bytes<Format>(next_k0) - weight_bytes<Format>(k0);
    n_rows_ = int(end - r), n_k_ = int(n_k), to_ = to;
    row_ = 0, k_ = 0;
  }
  bool done() const { return row_ >= n_rows_; }
  int64_t n_advances() const { return n_rows_ * int64_t((n_k_ + kUnpackK - 1) / kUnpackK); }
  void finish() {
    while (!done()) advance();
  }
  // Up to 256 k of a row.
  GRISTMILL_INLINE void advance() {
    if (done()) return;
    const uint8_t* const p = p_ + weight_bytes<Format>(k_);
    ask_for_next(p);
    unpack(p, std::min(kUnpackK, n_k_ - k_), to_[row_ / kPanelRows].tile + k_ / kStepK, row_ % kPanelRows);
    k_ += kUnpackK;
    if (k_ < n_k_) return;
    k_ = 0;
    ++row_;
    p_ += row_bytes_;
  }

 private:
  [[gnu::noinline]] static void unpack(const uint8_t* p, int n_k, Bf16Tile (*to)[kPlanes], int row) {
    RowLayout<Format>::template unpack<kPlanes>(p, n_k, to, row);
  }
  // What has this place in what comes next; beyond the matrix in vain.
  GRISTMILL_INLINE void ask_for_next(const uint8_t* p) const {
    ask_for<Cache::kL1>(reinterpret_cast<uintptr_t>(p) + uintptr_t(next_), weight_bytes<Format>(kUnpackK));
  }

  const uint8_t* p_ = nullptr;        // of the row
  int64_t row_bytes_ = 0, next_ = 0;  // from a weight to the one that has its place in what comes next
  int n_rows_ = 0, n_k_ = 0, row_ = 0, k_ = 0;
  Bf16Piece<kPlanes, kSteps>* to_ = nullptr;
};

}  // namespace
}  // namespace gristmill::cpu
