// Prefill: two tiles of 16 tokens by two panels of 16 rows of weights at a time, four tiles of sums. The panels of a
// piece of 256 k stay in L1 for all tokens of the batch, its activations and the sums of a block of rows in L2.
#pragma once

#include "cpu/isa/amx_bf16/operands.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanels = 2;                                                     // unpacked together
constexpr int64_t kSubRows = kPanels * kPanelRows, kBlockRows = 8 * kSubRows;  // that share a pass over the activations

using TileSums = float[kTokens][kPanelRows];

// sums[token tile][panel] of T tiles and R panels.
template <int kW, int kX, int T, int R>
GRISTMILL_INLINE void multiply(const TokenPiece<kX>* x, const WeightPiece<kW>* w, int n_steps, bool first,
                               TileSums* const (&sums)[2]) {
  for_constants<T * R>([&](auto i) GRISTMILL_LAMBDA {
    if (first) {
      clear_tile<i>();
    } else {
      stream_tile<i>(sums[i / R][i % R]);
    }
  });
  const auto load_x = [&](int s, int plane) GRISTMILL_LAMBDA {
    for_constants<T>([&](auto t) GRISTMILL_LAMBDA { stream_tile<4 + t>(x[t].tile[s][plane]); });
  };
  const auto load_w = [&](int s, int plane) GRISTMILL_LAMBDA {
    for_constants<R>([&](auto r) GRISTMILL_LAMBDA { load_tile<6 + r>(w[r].tile[s][plane]); });
  };
  const auto all = [&]() GRISTMILL_LAMBDA {
    for_constants<T * R>([&](auto i) GRISTMILL_LAMBDA { multiply_tiles<i, 4 + i / R, 6 + i % R>(); });
  };
  for (int s = 0; s < n_steps; ++s) {
    load_w(s, 0);
    if constexpr (kX == 2) {
      load_x(s, 1);
      all();
    }
    load_x(s, 0);
    all();
    if constexpr (kW == 2) {
      load_w(s, 1);
      all();
    }
  }
  for_constants<T * R>([&](auto i) GRISTMILL_LAMBDA { store_tile<i>(sums[i / R][i % R]); });
}

inline void store_line(float* p, __mmask16 mask, __m512 x) {
  if (mask == 0xffff && reinterpret_cast<uintptr_t>(p) % 64 == 0) {
    _mm512_stream_ps(p, x);
  } else {
    _mm512_mask_storeu_ps(p, mask, x);
  }
}

inline void store_sums(const MatmulTask& task, int64_t first_token, int64_t row, int64_t end, const TileSums& sums) {
  const int64_t m = task.w->n_rows;
  const __mmask16 mask = first_of(end - row);
  const __m512 bias = task.bias ? _mm512_maskz_loadu_ps(mask, task.bias + row) : _mm512_setzero_ps();
  const int64_t n = std::min<int64_t>(kTokens, task.n - first_token);
  for (int64_t t = 0; t < n; ++t)
    store_line(task.y + (first_token + t) * m + row, mask, _mm512_add_ps(_mm512_load_ps(sums[t]), bias));
}

template <class Format, int kW, int kX>
void prefill(const MatmulTask& task) {
  const TilesInUse tiles_in_use;
  const Weight& w = *task.w;
  const int64_t tiles = n_token_tiles(task.n);
  // Sums of a block, [sub][token tile][panel], and the panels of a sub.
  const size_t sums_bytes = size_t(kBlockRows / kPanelRows * tiles) * sizeof(TileSums);
  std::byte* scratch = thread_scratch(sums_bytes + kPanels * sizeof(WeightPiece<kW>));
  auto* all_sums = reinterpret_cast<TileSums*>(scratch);
  auto* panels = reinterpret_cast<WeightPiece<kW>*>(scratch + sums_bytes);
  for (int64_t r0 = task.row_begin; r0 < task.row_end; r0 += kBlockRows) {
    const int64_t r1 = std::min(task.row_end, r0 + kBlockRows);
    const auto* x = reinterpret_cast<const TokenPiece<kX>*>(task.x);
    for (int64_t k0 = 0; k0 < w.n_cols; k0 += kStepsK, x += tiles) {
      const int64_t n_k = std::min<int64_t>(kStepsK, w.n_cols - k0);
      const int n_steps = int((n_k + kStepK - 1) / kStepK);
      const bool first = k0 == 0, last = k0 + kStepsK >= w.n_cols;
      for (int64_t r = r0; r < r1; r += kSubRows) {
        const int n_panels = int(std::min<int64_t>(kPanels, (r1 - r + kPanelRows - 1) / kPanelRows));
        for (int p = 0; p < n_panels; ++p) {
          const int64_t row = r + p * kPanelRows;
          unpack_weights<Format, kW>(w, row, int(std::min<int64_t>(kPanelRows, r1 - row)), k0, n_k, panels[p]);
        }
        TileSums* sums = all_sums + (r - r0) / kPanelRows * tiles;
        for (int64_t t = 0; t < tiles; t += 2)
          for (int p = 0; p < n_panels; p += 2) {
            TileSums* const at[2] = {sums + t * kPanels + p, sums + (t + 1) * kPanels + p};
            const bool two_tiles = t + 1 < tiles, two_panels = p + 1 < n_panels;
            if (two_tiles) {
              two_panels ? multiply<kW, kX, 2, 2>(x + t, panels + p, n_steps, first, at)
                         : multiply<kW, kX, 2, 1>(x + t, panels + p, n_steps, first, at);
            } else {
              two_panels ? multiply<kW, kX, 1, 2>(x + t, panels + p, n_steps, first, at)
                         : multiply<kW, kX, 1, 1>(x + t, panels + p, n_steps, first, at);
            }
            if (last)
              for (int i = 0; i <= int(two_tiles); ++i)
                for (int j = 0; j <= int(two_panels); ++j)
                  store_sums(task, (t + i) * kTokens, r + (p + j) * kPanelRows, r1, at[i][j]);
          }
      }
    }
  }
  _mm_sfence();
}

}  // namespace
}  // namespace gristmill::cpu
