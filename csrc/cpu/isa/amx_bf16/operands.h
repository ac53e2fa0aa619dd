// Both operands as bfloat16, one plane or two: hi = bfloat16(x), lo = bfloat16(x - hi), which together have 16 bits.
// Of two planes each side hi hi + hi lo + lo hi are multiplied; lo lo would be below what lo rounds away.
//   activations   [piece][tile of 16 tokens][step of 32 k][plane][16 tokens][32]      zeros where there are no more
//   weights       [step of 32 k][plane][16 pairs of k][16 rows][2], of 16 rows
#pragma once

#include <algorithm>

#include "cpu/isa/amx_bf16/tile_registers.h"
#include "cpu/isa/avx512_vnni/panel_formats.h"

namespace gristmill::cpu {
namespace {

constexpr int kTokens = 16;  // of a tile

// Steps of a piece, by the planes of activations: so many that two panels of weights fit L1. The more there are, the
// less often sums go to L2 and come back, which costs as much as five steps.
constexpr int piece_steps(int planes) { return planes == 1 ? 16 : 8; }
constexpr int64_t piece_columns(int planes) { return piece_steps(planes) * kStepK; }

using Bf16Tile = uint16_t[kTileRows][32];

template <int kPlanes, int kSteps>
struct alignas(64) Bf16Piece {
  Bf16Tile tile[kSteps][kPlanes];
};
template <int kPlanes>
using TokenPiece = Bf16Piece<kPlanes, piece_steps(kPlanes)>;
// What a panel of 256 k becomes; a piece of weights is one or two.
template <int kPlanes>
using WeightPanel = Bf16Piece<kPlanes, kPieceK / kStepK>;

inline int64_t n_token_tiles(int64_t n_tokens) { return (n_tokens + kTokens - 1) / kTokens; }
inline int64_t pieces_of(int64_t n_cols, int planes) { return (n_cols - 1) / piece_columns(planes) + 1; }

// low's in the lower half, high's in the upper.
inline __m512i to_bf16(__m512 low, __m512 high) { return __m512i(_mm512_cvtne2ps_pbh(high, low)); }
inline __m512 low_bf16(__m512i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16));
}
inline __m512 high_bf16(__m512i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16));
}

// ---- activations ----

// 32 k of a token.
template <int kPlanes>
GRISTMILL_INLINE void set_line(Bf16Tile (&to)[kPlanes], int token, __m512 a, __m512 b) {
  const __m512i hi = to_bf16(a, b);
  _mm512_store_si512(to[0][token], hi);
  if constexpr (kPlanes == 2)
    _mm512_store_si512(to[1][token], to_bf16(_mm512_sub_ps(a, low_bf16(hi)), _mm512_sub_ps(b, high_bf16(hi))));
}

template <int kPlanes>
inline int64_t token_bytes(int64_t n_cols, int64_t n_tokens) {
  return pieces_of(n_cols, kPlanes) * n_token_tiles(n_tokens) * int64_t(sizeof(TokenPiece<kPlanes>));
}

inline __mmask16 first_of(int64_t n) { return __mmask16(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

// Tile `tile` of x [n_tokens, n_cols].
template <int kPlanes>
inline void round_tokens(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  auto* pieces = reinterpret_cast<TokenPiece<kPlanes>*>(out) + tile;
  for (int64_t p = 0; p < pieces_of(n_cols, kPlanes); ++p) {
    TokenPiece<kPlanes>& piece = pieces[p * n_token_tiles(n_tokens)];
    for (int t = 0; t < kTokens; ++t) {
      const int64_t token = tile * kTokens + t;
      const float* row = x + token * n_cols;
      for (int s = 0; s < piece_steps(kPlanes); ++s) {
        const int64_t k = p * piece_columns(kPlanes) + s * kStepK, left = token < n_tokens ? n_cols - k : 0;
        const __m512 a = _mm512_maskz_loadu_ps(first_of(left), row + k);
        const __m512 b = _mm512_maskz_loadu_ps(first_of(left - 16), row + k + 16);
        set_line<kPlanes>(piece.tile[s], t, a, b);
      }
    }
  }
}

// ---- weights ----

// Two k of 16 rows into the lines of a tile, the rows' pairs side by side.
template <int kPlanes>
GRISTMILL_INLINE void set_pair(Bf16Tile (*to)[kPlanes], int pair, __m512 even, __m512 odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i hi = _mm512_permutexvar_epi16(order, to_bf16(even, odd));
  _mm512_store_si512(to[pair / 16][0][pair % 16], hi);
  if constexpr (kPlanes == 2) {
    const __m512 e = _mm512_castsi512_ps(_mm512_slli_epi32(hi, 16));
    const __m512 o = _mm512_castsi512_ps(_mm512_and_si512(hi, _mm512_set1_epi32(int(0xffff0000))));
    _mm512_store_si512(to[pair / 16][1][pair % 16],
                       _mm512_permutexvar_epi16(order, to_bf16(_mm512_sub_ps(even, e), _mm512_sub_ps(odd, o))));
  }
}

// Lines of four k of a panel, of one group: w = scale u + (minimum - zero scale).
template <class Layout, int kPlanes, int kLines = 1>
GRISTMILL_INLINE void weigh(const Panel& panel, int line, Bf16Tile (*to)[kPlanes]) {
  const int group = 4 * line / Layout::kGroup;
  const __m512 scale = _mm512_load_ps(panel.scale[group]);
  __m512 start = _mm512_setzero_ps();
  if constexpr (Layout::kHasMin) start = _mm512_load_ps(panel.minimum[4 * line / Layout::kMinGroup]);
  if constexpr (Layout::kZero != 0) start = _mm512_fnmadd_ps(scale, _mm512_set1_ps(Layout::kZero), start);
#pragma GCC unroll 4
  for (int i = line; i < line + kLines; ++i) {
    const __m512i u = _mm512_load_si512(panel.u[i]);
    __m512 w[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) w[j] = _mm512_fmadd_ps(byte_to_float(u, j), scale, start);
    set_pair<kPlanes>(to, 2 * i, w[0], w[1]);
    set_pair<kPlanes>(to, 2 * i + 1, w[2], w[3]);
  }
}

// Halves lie in pairs in the file already: bfloat16 is one plane as it is.
template <class F>
struct HalfLayout {
  using Format = F;
  static constexpr int kBlocks = kPieceK;  // of one weight
  static constexpr int kLineK = 8;

  template <int kPlanes>
  GRISTMILL_INLINE static void unpack_line(const Rows& rows, int line, Bf16Tile (*to)[kPlanes]) {
    __m512i c[4];
    columns(rows, 2 * kLineK * line, c);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int pair = 4 * line + j;
      if constexpr (Format::kId == formats::TypeId::BF16) {
        static_assert(kPlanes == 1);
        _mm512_store_si512(to[pair / 16][0][pair % 16], c[j]);
      } else {
        set_pair<kPlanes>(to, pair, low_halves(c[j]), high_halves(c[j]));
      }
    }
  }
  template <int kWeights, int kPlanes>
  static void unpack(const Rows& rows, WeightPanel<kPlanes>& to) {
    for (int line = 0; line < kWeights / kLineK; ++line) unpack_line<kPlanes>(rows, line, to.tile);
  }
};

// The panels of a piece, a few lines at a time: between products of the piece before, which leave the vector ports
// free.
template <class Format, int kPlanes, int kSteps>
class WeightUnpacker {
 public:
  // Rows [r, end) and columns [k0, k0 + n_k) of w; one panel after the other of `to`. What is unpacked after them,
  // from row next_r and column next_k0 on, is asked for meanwhile: rows are far apart for what is read of each, so the
  // hardware does not run ahead.
  void begin(const Weight& w, int64_t r, int64_t end, int64_t k0, int64_t n_k, int64_t next_r, int64_t next_k0,
             Bf16Piece<kPlanes, kSteps>* to) {
    w_ = &w, r_ = r, end_ = end, k0_ = k0, n_k_ = n_k, to_ = to;
    row_bytes_ = weight_bytes<Format>(w.n_cols);
    next_ = (next_r - r) * row_bytes_ + weight_bytes<Format>(next_k0) - weight_bytes<Format>(k0);
    k_ = 0, line_ = 0, n_lines_ = 0;
  }
  bool done() const { return r_ >= end_; }
  void finish() {
    while (!done()) {
      advance();
      if constexpr (Format::kKind == formats::Kind::kAffine) {
        auto* to = to_->tile + k_ / kStepK;
        for (; line_ % 4 == 0 && line_ + 4 < n_lines_; line_ += 4) {
          ask_for_next(line_ / 4);
          weigh<PanelLayout<Format>, kPlanes, 4>(panel_, line_, to);
        }
      }
    }
  }
  // Four k of 16 rows, or eight where they are halves; those of a panel that is not whole all at once.
  GRISTMILL_INLINE void advance() {
    if (done()) return;
    if constexpr (Format::kKind == formats::Kind::kFloat) {
      if (n_rows() == kPanelRows && n_columns() == kPieceK) {
        const auto* p = reinterpret_cast<const uint8_t*>(w_->data) + r_ * row_bytes_ + weight_bytes<Format>(k0_ + k_);
        if (line_ % 2 == 0) ask_for_next(line_ / 2);
        HalfLayout<Format>::template unpack_line<kPlanes>(Rows{p, row_bytes_}, line_, to_->tile + k_ / kStepK);
        if (++line_ == kPieceK / HalfLayout<Format>::kLineK) next_panel();
        return;
      }
      unpack_blocks<HalfLayout<Format>>(*w_, r_, n_rows(), 1, k0_ + k_, n_columns(),
                                        *reinterpret_cast<WeightPanel<kPlanes>*>(to_->tile + k_ / kStepK));
      next_panel();
    } else {
      if (line_ == n_lines_) start_panel();
      if (line_ % 4 == 0) ask_for_next(line_ / 4);
      weigh<PanelLayout<Format>, kPlanes>(panel_, line_, to_->tile + k_ / kStepK);
      if (++line_ == n_lines_) next_panel();
    }
  }

 private:
  int n_rows() const { return int(std::min<int64_t>(kPanelRows, end_ - r_)); }
  int64_t n_columns() const { return std::min<int64_t>(kPieceK, n_k_ - k_); }
  // 256 weights of a row of the panel that has this one's place in what comes next; beyond the matrix in vain.
  GRISTMILL_INLINE void ask_for_next(int row) const {
    const uintptr_t p = reinterpret_cast<uintptr_t>(w_->data) +
                        uintptr_t((r_ + row) * row_bytes_ + weight_bytes<Format>(k0_ + k_) + next_);
    for (uintptr_t i = 0; i < uintptr_t(weight_bytes<Format>(kPieceK)); i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
  }
  [[gnu::noinline]] void start_panel() {
    unpack_piece<PanelLayout<Format>>(*w_, r_, n_rows(), 1, k0_ + k_, n_columns(), panel_);
    line_ = 0;
    n_lines_ = int(n_columns() / 4);
  }
  void next_panel() {
    line_ = n_lines_ = 0;
    k_ += kPieceK;
    if (k_ < n_k_) return;
    k_ = 0;
    r_ += kPanelRows;
    ++to_;
  }

  const Weight* w_ = nullptr;
  int64_t r_ = 0, end_ = 0, k0_ = 0, n_k_ = 0, k_ = 0;
  int64_t row_bytes_ = 0, next_ = 0;  // from a weight to the one that has its place in what comes next
  Bf16Piece<kPlanes, kSteps>* to_ = nullptr;
  int line_ = 0, n_lines_ = 0;
  Panel panel_;
};

}  // namespace
}  // namespace gristmill::cpu
