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

constexpr int kPieceSteps = 2 * kPieceK / kStepK;  // two panels'
constexpr int64_t kStepsK = kPieceSteps * kStepK;
constexpr int kTokens = 16;  // of a tile

using Bf16Tile = uint16_t[kTileRows][32];

template <int kPlanes>
struct alignas(64) TokenPiece {
  Bf16Tile tile[kPieceSteps][kPlanes];
};
template <int kPlanes>
struct alignas(64) WeightPiece {
  Bf16Tile tile[kPieceSteps][kPlanes];
};

template <int kPlanes>
struct alignas(64) WeightPanel {
  Bf16Tile tile[kPieceK / kStepK][kPlanes];
};

inline int64_t n_token_tiles(int64_t n_tokens) { return (n_tokens + kTokens - 1) / kTokens; }
inline int64_t n_k_pieces(int64_t n_cols) { return (n_cols + kStepsK - 1) / kStepsK; }

// low's in the lower half, high's in the upper.
inline __m512i to_bf16(__m512 low, __m512 high) { return __m512i(_mm512_cvtne2ps_pbh(high, low)); }
inline __m512 low_bf16(__m512i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16));
}
inline __m512 high_bf16(__m512i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16));
}

// ---- activations ----

template <int kPlanes>
inline int64_t token_bytes(int64_t n_cols, int64_t n_tokens) {
  return n_k_pieces(n_cols) * n_token_tiles(n_tokens) * int64_t(sizeof(TokenPiece<kPlanes>));
}

inline __mmask16 first_of(int64_t n) { return __mmask16(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

// Tile `tile` of x [n_tokens, n_cols].
template <int kPlanes>
inline void round_tokens(const float* x, int64_t n_cols, int64_t n_tokens, int64_t tile, std::byte* out) {
  auto* pieces = reinterpret_cast<TokenPiece<kPlanes>*>(out) + tile;
  for (int64_t p = 0; p < n_k_pieces(n_cols); ++p) {
    TokenPiece<kPlanes>& piece = pieces[p * n_token_tiles(n_tokens)];
    for (int t = 0; t < kTokens; ++t) {
      const int64_t token = tile * kTokens + t;
      const float* row = x + token * n_cols;
      for (int s = 0; s < kPieceSteps; ++s) {
        const int64_t k = p * kStepsK + s * kStepK, left = token < n_tokens ? n_cols - k : 0;
        const __m512 a = _mm512_maskz_loadu_ps(first_of(left), row + k);
        const __m512 b = _mm512_maskz_loadu_ps(first_of(left - 16), row + k + 16);
        const __m512i hi = to_bf16(a, b);
        _mm512_store_si512(piece.tile[s][0][t], hi);
        if constexpr (kPlanes == 2)
          _mm512_store_si512(piece.tile[s][1][t],
                             to_bf16(_mm512_sub_ps(a, low_bf16(hi)), _mm512_sub_ps(b, high_bf16(hi))));
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

// w = scale u + (minimum - zero scale) of a panel's groups.
template <class Layout, int kPlanes>
inline void weigh(const Panel& panel, int64_t n_k, Bf16Tile (*to)[kPlanes]) {
  constexpr int kGroup = Layout::kGroup;
  for (int g = 0; g * kGroup < n_k; ++g) {
    const __m512 scale = _mm512_load_ps(panel.scale[g]);
    __m512 start = _mm512_setzero_ps();
    if constexpr (Layout::kHasMin) start = _mm512_load_ps(panel.minimum[g * kGroup / Layout::kMinGroup]);
    if constexpr (Layout::kZero != 0) start = _mm512_fnmadd_ps(scale, _mm512_set1_ps(Layout::kZero), start);
#pragma GCC unroll 8
    for (int i = 0; i < kGroup / 4; ++i) {
      const __m512i u = _mm512_load_si512(panel.u[g * (kGroup / 4) + i]);
      __m512 w[4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) w[j] = _mm512_fmadd_ps(byte_to_float(u, j), scale, start);
      set_pair<kPlanes>(to, (g * kGroup + 4 * i) / 2, w[0], w[1]);
      set_pair<kPlanes>(to, (g * kGroup + 4 * i) / 2 + 1, w[2], w[3]);
    }
  }
}

// Halves lie in pairs in the file already: bfloat16 is one plane as it is.
template <class F>
struct HalfLayout {
  using Format = F;
  static constexpr int kBlocks = kPieceK;  // of one weight
  template <int kWeights, int kPlanes>
  GRISTMILL_INLINE static void unpack(const Rows& rows, WeightPanel<kPlanes>& to) {
    for (int i = 0; i < kWeights / 8; ++i) {
      __m512i c[4];
      columns(rows, 16 * i, c);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        if constexpr (Format::kId == formats::TypeId::BF16) {
          static_assert(kPlanes == 1);
          _mm512_store_si512(to.tile[(4 * i + j) / 16][0][(4 * i + j) % 16], c[j]);
        } else {
          set_pair<kPlanes>(to.tile, 4 * i + j, low_halves(c[j]), high_halves(c[j]));
        }
      }
    }
  }
};

template <class Format, int kPlanes>
inline void unpack_weights(const Weight& w, int64_t r, int n_rows, int64_t k0, int64_t n_k, WeightPiece<kPlanes>& to) {
  for (int64_t k = 0; k < n_k; k += kPieceK) {
    const int64_t some = std::min<int64_t>(kPieceK, n_k - k);
    auto* tiles = to.tile + k / kStepK;
    if constexpr (Format::kKind == formats::Kind::kFloat) {
      unpack_blocks<HalfLayout<Format>>(w, r, n_rows, 1, k0 + k, some, *reinterpret_cast<WeightPanel<kPlanes>*>(tiles));
    } else {
      Panel panel;
      unpack_piece<PanelLayout<Format>>(w, r, n_rows, 1, k0 + k, some, panel);
      weigh<PanelLayout<Format>, kPlanes>(panel, some, tiles);
    }
  }
}

}  // namespace
}  // namespace gristmill::cpu
