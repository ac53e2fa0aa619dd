// Prefill: two tiles of 16 tokens by two panels of 16 rows of weights at a time, four tiles of sums. The panels of a
// piece of 512 k (256 where activations have two planes) stay in L1 for all tokens of the batch, its activations and
// the sums of a block of rows in L2. What is needed next is asked for a few lines at a time: weights and the next four
// tiles' sums into L1, the next piece's activations, which come from beyond L2, into L2.
#pragma once

#include "cpu/isa/amx_bf16/multiply.h"

namespace gristmill::cpu {
namespace {

constexpr int kPanels = 2;                                                      // unpacked together
constexpr int64_t kSubRows = kPanels * kPanelRows, kBlockRows = 16 * kSubRows;  // that share a pass over activations
// Bytes of activations that stay in L2 whatever passes. Then no rows have to share a pass, and each is read from its
// first to its last weight.
constexpr int64_t kNearBytes = 1 << 20;

using TileSums = float[kPanelRows][kTokens];

inline void store_line(float* p, __mmask16 mask, __m512 x) {
  if (mask == 0xffff && reinterpret_cast<uintptr_t>(p) % 64 == 0) {
    _mm512_stream_ps(p, x);
  } else {
    _mm512_mask_storeu_ps(p, mask, x);
  }
}

inline void store_sums(const MatmulTask& task, int64_t first_token, int64_t row, int64_t end, const TileSums& sums) {
  const int64_t m = task.w->n_rows;
  const __mmask16 mask = first_lanes(end - row);
  const __m512 bias = task.bias ? _mm512_maskz_loadu_ps(mask, task.bias + row) : _mm512_setzero_ps();
  const int n = int(std::min<int64_t>(kTokens, task.n - first_token));
  float* y = task.y + first_token * m + row;
  Rows rows(reinterpret_cast<const uint8_t*>(sums), sizeof sums[0]);
  for (int t = 0; t < n; t += 4) {
    __m512i c[4];
    columns(rows, t * int(sizeof(float)), c);
    for (int i = 0; i < std::min(4, n - t); ++i, y += m)
      store_line(y, mask, _mm512_add_ps(_mm512_castsi512_ps(c[i]), bias));
  }
}

// Where a task is: rows [r, end) by columns [k0, k0 + n_k). Blocks of rows, of those the columns piece by piece, of
// those the rows again, as many as are unpacked together.
template <int64_t kColumns>
struct Part {
  int64_t block_rows, block, k0, r;
  int64_t block_end(const MatmulTask& task) const { return std::min(task.row_end, block + block_rows); }
  int64_t end(const MatmulTask& task) const { return std::min(block_end(task), r + kSubRows); }
  int64_t n_k(const MatmulTask& task) const { return std::min(kColumns, task.w->n_cols - k0); }
  bool exists(const MatmulTask& task) const { return block < task.row_end; }
  void advance(const MatmulTask& task) {
    r += kSubRows;
    if (r < block_end(task)) return;
    r = block, k0 += kColumns;
    if (k0 < task.w->n_cols) return;
    block += block_rows, k0 = 0, r = block;
  }
};

template <class Format, int kW, int kX>
void prefill(const MatmulTask& task) {
  constexpr int64_t kColumns = piece_columns(kX);
  using Part = cpu::Part<kColumns>;
  using WeightPiece = Bf16Piece<kW, piece_steps(kX)>;
  const TilesInUse tiles_in_use;
  const int64_t tiles = n_token_tiles(task.n);
  // Sums of a block, [part][token tile][panel], and the panels of a part and of the next.
  const size_t sums_bytes = size_t(kBlockRows / kPanelRows * tiles) * sizeof(TileSums);
  std::byte* scratch = thread_scratch(sums_bytes + 2 * kPanels * sizeof(WeightPiece));
  auto* all_sums = reinterpret_cast<TileSums*>(scratch);
  auto* panels = reinterpret_cast<WeightPiece*>(scratch + sums_bytes);
  auto* next_panels = panels + kPanels;
  WeightUnpacker<Format, kW, piece_steps(kX)> unpacker;
  const auto unpack = [&](const Part& part, WeightPiece* to) {
    Part next = part;
    next.advance(task);
    unpacker.begin(*task.w, part.r, part.end(task), part.k0, part.n_k(task), next.r, next.k0, to);
  };
  const bool near = token_bytes<kX>(task.w->n_cols, task.n) <= kNearBytes;
  const int64_t block_rows = near ? kSubRows : kBlockRows;
  StepAsker tokens, next_sums;
  Part part{block_rows, task.row_begin, 0, task.row_begin};
  unpack(part, panels);
  while (part.exists(task)) {
    unpacker.finish();
    Part next = part;
    next.advance(task);
    if (next.exists(task)) unpack(next, next_panels);
    const auto* all_x = reinterpret_cast<const TokenPiece<kX>*>(task.x);
    const auto* x = all_x + part.k0 / kColumns * tiles;
    TileSums* sums = all_sums + (part.r - part.block) / kPanelRows * tiles;
    const int n_steps = int((part.n_k(task) + kStepK - 1) / kStepK);
    const bool first = part.k0 == 0, last = part.k0 + kColumns >= task.w->n_cols;
    const bool two_panels = part.end(task) - part.r > kPanelRows;
    const int64_t steps = (tiles + 1) / 2 * n_steps;
    if (!near && part.r == part.block) {
      // Behind the last piece comes the first, for other rows.
      const auto* next_x = all_x + (part.k0 / kColumns + 1) % pieces_of(task.w->n_cols, kX) * tiles;
      const int64_t parts = (part.block_end(task) - part.block + kSubRows - 1) / kSubRows;
      tokens.begin(next_x, tiles * int64_t(sizeof *next_x), steps * parts);
    }
    // Evenly over the steps.
    const int64_t n_advances = next.exists(task) ? unpacker.n_advances() : 0;
    int64_t due = 0;
    const auto meanwhile = [&]() GRISTMILL_LAMBDA {
      for (due += n_advances; due >= steps; due -= steps) unpacker.advance();
      next_sums.advance<Cache::kL1>();
      tokens.advance<Cache::kL2>();
    };
    for (int64_t t = 0; t < tiles; t += 2) {
      TileSums* const at = sums + t * kPanels;
      const SumTiles to{reinterpret_cast<std::byte*>(at), kPanels * sizeof(TileSums), sizeof(TileSums), 64};
      const bool two_tiles = t + 1 < tiles;
      next_sums.begin(at + 2 * kPanels, 2 * kPanels * int64_t(sizeof(TileSums)), n_steps);
      multiply_some<kW, kX, Order::kKeptFirst>(two_tiles, two_panels, reinterpret_cast<const std::byte*>(x + t),
                                               sizeof *x, reinterpret_cast<const std::byte*>(panels), sizeof *panels,
                                               n_steps, first, to, meanwhile);
      if (last)
        for (int i = 0; i <= int(two_tiles); ++i)
          for (int j = 0; j <= int(two_panels); ++j)
            store_sums(task, (t + i) * kTokens, part.r + j * kPanelRows, part.end(task), at[i * kPanels + j]);
    }
    std::swap(panels, next_panels);
    part = next;
  }
  _mm_sfence();
}

}  // namespace
}  // namespace gristmill::cpu
