// Matrix products for many tokens: a GEMM of halves with float32 sums. The weights come from scratch memory
// (dequantize.cu), in pieces that stay in L2 between the two kernels as far as they fit. Here the GEMM of mma.sync, for
// every architecture; matmul_prefill_sm90.cu has that of wgmma.
#include <algorithm>

#include "cuda/device/arithmetic.h"
#include "cuda/device/memory.h"
#include "cuda/device/mma.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"
#include "cuda/gemm.h"
#include "cuda/matmul.h"

namespace gristmill::cuda {
namespace {

// A block makes 128 tokens x 128 rows of weights, a warp 64 x 32 of them, 64 columns of k at a time.
constexpr int kTokens = 128, kRows = 128, kDepth = 64, kStages = 3, kThreads = 256;
constexpr int kRowBytes = kDepth * 2, kChunks = kRowBytes / 16;
constexpr int kStageBytes = (kTokens + kRows) * kRowBytes;

// Where 16-byte chunk `chunk` of a row lies: rows 8 apart share banks, so chunks of neighbours change places.
DEVICE std::byte* chunk_at(std::byte* tile, int row, int chunk) {
  return tile + row * kRowBytes + ((chunk ^ (row & 7)) * 16);
}

// 128 rows of kDepth halves from `from` on; rows from n_rows on become zeros.
DEVICE void copy_tile(std::byte* tile, const uint16_t* from, int64_t stride, int n_rows) {
  UNROLL
  for (int i = 0; i < 128 * kChunks / kThreads; ++i) {
    const int at = i * kThreads + int(threadIdx.x), row = at / kChunks, chunk = at % kChunks;
    const bool inside = row < n_rows;
    copy_async16(chunk_at(tile, row, chunk), from + (inside ? row * stride + chunk * 8 : 0), inside ? 16 : 0);
  }
}

// Block (x, y): tokens 128 x and on, rows 128 y and on; blocks that run together share rows of weights.
KERNEL(kThreads, 1) gemm_halves(GRID_CONSTANT GemmWork work) {
  SMEM(std::byte, shared);
  const int token0 = int(blockIdx.x) * kTokens, row0 = int(blockIdx.y) * kRows;
  const int warp_token = warp_id() % 2 * 64, warp_row = warp_id() / 2 * 32;
  const int lane = lane_id(), g = lane / 4, t = lane % 4;
  const int n_steps = int(work.padded / kDepth);
  const uint16_t* x = work.x + int64_t(token0) * work.padded;
  const uint16_t* w = work.w + int64_t(row0) * work.padded;
  const auto issue = [&](int step) {
    if (step < n_steps) {
      std::byte* stage = shared + step % kStages * kStageBytes;
      copy_tile(stage, x + step * kDepth, work.padded, work.n - token0);
      copy_tile(stage + kTokens * kRowBytes, w + step * kDepth, work.padded, work.w_rows - row0);
    }
    commit_copies();
  };
  for (int step = 0; step < kStages - 1; ++step) issue(step);

  float acc[4][4][4];  // [16 tokens][8 rows] of the warp's
  UNROLL
  for (int i = 0; i < 4; ++i) {
    UNROLL
    for (int j = 0; j < 4; ++j) {
      UNROLL
      for (int e = 0; e < 4; ++e) acc[i][j][e] = 0.0f;
    }
  }
  for (int step = 0; step < n_steps; ++step) {
    wait_copies<kStages - 2>();
    sync_block();
    issue(step + kStages - 1);
    std::byte* tokens = shared + step % kStages * kStageBytes;
    std::byte* rows = tokens + kTokens * kRowBytes;
    UNROLL
    for (int k = 0; k < kDepth / 16; ++k) {
      uint32_t a[4][4], b[2][4];
      // Matrices 0 to 3 of an A fragment: rows 0-7, rows 8-15, then both 8 columns on.
      UNROLL
      for (int i = 0; i < 4; ++i)
        load_matrices(a[i], chunk_at(tokens, warp_token + 16 * i + lane % 16, 2 * k + lane / 16));
      // Of two B fragments: rows 0-7, 8 columns on, then rows 8-15 likewise.
      UNROLL
      for (int j = 0; j < 2; ++j)
        load_matrices(b[j], chunk_at(rows, warp_row + 16 * j + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      UNROLL
      for (int i = 0; i < 4; ++i) {
        UNROLL
        for (int j = 0; j < 4; ++j) mma_f16(acc[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  wait_copies<0>();

  UNROLL
  for (int i = 0; i < 4; ++i) {
    UNROLL
    for (int half = 0; half < 2; ++half) {
      const int token = token0 + warp_token + 16 * i + g + 8 * half;
      if (token >= work.n) continue;
      const float scale = work.x_scale[token];
      UNROLL
      for (int j = 0; j < 4; ++j) {
        UNROLL
        for (int e = 0; e < 2; ++e) {
          const int row = row0 + warp_row + 8 * j + 2 * t + e;
          if (row >= work.n_rows) continue;
          const float value = acc[i][j][2 * half + e] * scale;
          work.y[token * work.stride + row] = work.bias ? value + work.bias[row] : value;
        }
      }
    }
  }
}

// Rows of a matrix that are dequantized at once, at most.
int64_t rows_at_once(const DeviceInfo& device, int64_t padded) {
  // Bytes, where memory is plenty a matrix of 5120 x 27648 as a whole: pieces of it leave most SMs without work where a
  // prompt is short.
  constexpr int64_t kLeastScratch = 128 << 20, kMostScratch = 288 << 20;
  const int64_t panel_scratch = std::clamp(device.memory_bytes / 256, kLeastScratch, kMostScratch);
  const bool panels = prefill_order(device) == HalfOrder::kPanels;
  const int64_t least = panels ? kGemmRows : kRows;
  const int64_t rows = (panels ? panel_scratch : device.l2_bytes / 2) / (2 * padded);
  return std::max(least, rows / least * least);
}

}  // namespace

HalfOrder prefill_order(const DeviceInfo& device) {
  return device.major == 9 && has_wgmma_code() ? HalfOrder::kPanels : HalfOrder::kRows;
}

int64_t prefill_rows(const DeviceInfo& device, int64_t n) {
  return prefill_order(device) == HalfOrder::kPanels ? (n + kGemmTokens - 1) / kGemmTokens * kGemmTokens : n;
}

int64_t prefill_scratch(const DeviceInfo& device, int64_t n_cols) {
  return rows_at_once(device, padded_columns(n_cols)) * padded_columns(n_cols);
}

void prefill_matmul(std::span<const DeviceProduct> products, const HalfRows& x, int n, uint16_t* scratch,
                    const DeviceInfo& device, Stream stream) {
  const bool panels = x.order == HalfOrder::kPanels;
  for (const DeviceProduct& p : products) {
    const Matrix& m = p.matrix;
    const int64_t most = rows_at_once(device, x.padded);
    const int64_t step = (panels ? whole_waves(most, m.n_rows, n, device.multiprocessors) : most) / kTileRows;
    for (int64_t tile = 0; tile < m.row_tiles(); tile += step) {
      const int tiles = int(std::min(step, m.row_tiles() - tile));
      dequantize_halves(m, tile, tiles, x.order, scratch, stream);
      const int64_t row = tile * kTileRows, w_rows = int64_t(tiles) * kTileRows;
      const GemmWork work{x.values,  x.scales, scratch,     p.bias ? p.bias + row : nullptr,
                          p.y + row, n,        int(w_rows), int(std::min(w_rows, m.n_rows - row)),
                          x.padded,  m.n_rows};
      if (panels) {
        gemm_panels(work, stream);
        continue;
      }
      launch("gemm_halves", gemm_halves,
             {{unsigned((n + kTokens - 1) / kTokens), unsigned((w_rows + kRows - 1) / kRows)},
              {unsigned(kThreads)},
              size_t(kStages) * kStageBytes,
              stream},
             work);
    }
  }
}

}  // namespace gristmill::cuda
