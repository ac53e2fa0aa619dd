// The GEMM of prefill on sm_90a: wgmma on panels of halves that bulk copies bring to shared memory as they lie.
//
//   block     128 tokens x 256 rows of weights, 64 columns of k at a time, kStages deep
//   warp 8    one lane of it starts the copies: a stage is free when the eight other warps have left it
//   warps 0-7 two warpgroups of 64 tokens each; products of one stage run while the next one is waited for
#include <algorithm>

#include "cuda/activations.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/device/wgmma.h"
#include "cuda/gemm.h"

namespace gristmill::cuda {
namespace {

constexpr int kPanelBytes = kPanel * kPanel * 2;
constexpr int kTokenPanels = kGemmTokens / kPanel, kRowPanels = kGemmRows / kPanel;
constexpr int kStageBytes = (kTokenPanels + kRowPanels) * kPanelBytes, kStages = 4;
constexpr int kConsumers = kGemmTokens / 64 * kWarpgroup / kWarp;  // warps
constexpr int kThreads = (kConsumers + 1) * kWarp;
constexpr size_t kSharedBytes = size_t(kStages) * kStageBytes + 2 * kStages * sizeof(uint64_t);

struct Pipeline {
  std::byte* stages;
  uint64_t *full, *empty;  // [kStages]

  DEVICE std::byte* stage(int step) const { return stages + step % kStages * kStageBytes; }
  DEVICE unsigned parity(int step) const { return unsigned(step / kStages) & 1u; }
};

// By one thread.
DEVICE void bring_panels(const GemmWork& work, const Pipeline& p, int token0, int row0, int n_steps) {
  const int64_t panels = work.padded / kPanel;  // of a row of panels
  const auto* x = reinterpret_cast<const std::byte*>(work.x) + token0 / kPanel * panels * kPanelBytes;
  const auto* w = reinterpret_cast<const std::byte*>(work.w) + row0 / kPanel * panels * kPanelBytes;
  for (int step = 0; step < n_steps; ++step) {
    uint64_t* full = p.full + step % kStages;
    if (step >= kStages) barrier_wait(p.empty + step % kStages, p.parity(step - kStages));
    barrier_arrive_expect(full, kStageBytes);
    std::byte* to = p.stage(step);
    for (int i = 0; i < kTokenPanels; ++i)
      copy_bulk(to + i * kPanelBytes, x + (i * panels + step) * kPanelBytes, kPanelBytes, full);
    to += kTokenPanels * kPanelBytes;
    for (int i = 0; i < kRowPanels; ++i)
      copy_bulk(to + i * kPanelBytes, w + (i * panels + step) * kPanelBytes, kPanelBytes, full);
  }
}

// Rows of a lane: token and token + 8.
DEVICE void write_sums(const GemmWork& work, const float (&d)[128], int token, int row0) {
  const bool pairs = work.stride % 2 == 0;
  UNROLL
  for (int half = 0; half < 2; ++half) {
    const int at = token + 8 * half;
    if (at >= work.n) continue;
    const float scale = work.x_scale[at];
    float* y = work.y + at * work.stride;
    UNROLL
    for (int j = 0; j < kGemmRows / 8; ++j) {
      const int row = row0 + 8 * j + lane_id() % 4 * 2;
      float2 v{d[4 * j + 2 * half] * scale, d[4 * j + 2 * half + 1] * scale};
      if (work.bias) {
        if (row < work.n_rows) v.x += work.bias[row];
        if (row + 1 < work.n_rows) v.y += work.bias[row + 1];
      }
      if (pairs && row + 1 < work.n_rows) {
        *reinterpret_cast<float2*>(y + row) = v;
      } else {
        if (row < work.n_rows) y[row] = v.x;
        if (row + 1 < work.n_rows) y[row + 1] = v.y;
      }
    }
  }
}

// Block (x, y): tokens 128 x and on, rows 256 y and on; blocks that run together share rows of weights. A panel row of
// weights beyond the matrix holds whatever is there: its results are not written.
KERNEL(kThreads, 1) gemm_wgmma(GRID_CONSTANT GemmWork work) {
  if constexpr (is_for_this_code<true>()) {
    SMEM(std::byte, shared);
    auto* barriers = reinterpret_cast<uint64_t*>(shared + kStages * kStageBytes);
    const Pipeline p{shared, barriers, barriers + kStages};
    const int token0 = int(blockIdx.x) * kGemmTokens, row0 = int(blockIdx.y) * kGemmRows;
    const int n_steps = int(work.padded / kPanel), warp = warp_id();
    if (threadIdx.x == 0) {
      for (int i = 0; i < kStages; ++i) {
        barrier_init(p.full + i, 1);
        barrier_init(p.empty + i, kConsumers);
      }
      fence_barrier_init();
    }
    sync_block();
    if (warp == kConsumers) {
      if (lane_id() == 0) bring_panels(work, p, token0, row0, n_steps);
      return;
    }
    const int group = warp / 4;
    float d[128];
    for (int step = 0; step < n_steps; ++step) {
      barrier_wait(p.full + step % kStages, p.parity(step));
      const std::byte* tokens = p.stage(step) + group * kPanelBytes;
      const std::byte* rows = p.stage(step) + kTokenPanels * kPanelBytes;
      fence_products();
      UNROLL
      for (int k = 0; k < kPanel; k += 16)
        multiply_64x256(d, operand_at(tokens, k), operand_at(rows, k), step > 0 || k > 0);
      commit_products();
      wait_products<1>();
      // The products of the step before are done in this warp.
      if (step > 0 && lane_id() == 0) barrier_arrive(p.empty + (step - 1) % kStages);
    }
    wait_products<0>();
    settle_products(d);
    write_sums(work, d, token0 + warp * 16 + lane_id() / 4, row0);
  } else {
    wrong_code();
  }
}

}  // namespace

void gemm_panels(const GemmWork& work, Stream stream) {
  launch("gemm_wgmma", gemm_wgmma,
         {{unsigned((work.n + kGemmTokens - 1) / kGemmTokens), unsigned((work.w_rows + kGemmRows - 1) / kGemmRows)},
          {unsigned(kThreads)},
          kSharedBytes,
          stream},
         work);
}

int64_t whole_waves(int64_t most, int64_t n_rows, int n, int multiprocessors) {
  const int64_t across = (n + kGemmTokens - 1) / kGemmTokens, all = (n_rows + kGemmRows - 1) / kGemmRows;
  const int64_t limit = std::min(all, most / kGemmRows);
  int64_t best = limit;
  double best_share = 0.0;
  for (int64_t blocks = limit; blocks > limit / 2; --blocks) {
    const int64_t waves = (blocks * across + multiprocessors - 1) / multiprocessors;
    const double share = double(blocks * across) / double(waves * multiprocessors);
    if (share > best_share + 1e-9) {
      best_share = share;
      best = blocks;
    }
  }
  return best * kGemmRows;
}

}  // namespace gristmill::cuda
