// Activations of many tokens in shared memory: read from L2 once for all warps of a block, which go through the same
// columns. With 32 tokens a column tile of them is seven times the bytes of a tile of 4-bit weights; each warp for
// itself would ask L2 for more than it gives.
//
//   one warp     waits until a stage is empty, starts its copies, goes on to the next column tile
//   the others   wait until it is full, multiply by it, say that they are done
#pragma once

#include "cuda/decode_work.h"

namespace gristmill::cuda {

// Where activations lie for the lanes that read them: in elements from one plane, or one token, to the next.
struct GlobalRows {
  static constexpr bool kWholeBlocks = false;
  DEVICE static int64_t plane(const DecodeWork& work) { return work.padded; }
  DEVICE static int64_t scales(const DecodeWork& work) { return work.padded / 16; }
  DEVICE static int64_t sums(const DecodeWork& work) { return work.padded / 16; }
};
// A column tile of a stage: planes, scales, sums. Rows are apart such that lanes which read the same of neighbouring
// tokens (or, of two tokens each, of every second) meet different banks.
struct StagedRows {
  static constexpr bool kWholeBlocks =
      true;  // every eight tokens are there: the last one's stand for those that are not
  static constexpr int kPlane = kTileColumns + 16, kScales = kTileColumns / 16 + 4, kSums = kTileColumns / 16 + 4;
  DEVICE static constexpr int plane(const DecodeWork&) { return kPlane; }
  DEVICE static constexpr int scales(const DecodeWork&) { return kScales; }
  DEVICE static constexpr int sums(const DecodeWork&) { return kSums; }
};

template <int kTokens>
struct StageOf {
  static constexpr int kScalesAt = 2 * kTokens * StagedRows::kPlane;
  static constexpr int kSumsAt = kScalesAt + kTokens * StagedRows::kScales * int(sizeof(float));
  static constexpr int kBytes = (kSumsAt + kTokens * StagedRows::kSums * int(sizeof(int32_t)) + 127) / 128 * 128;
};
constexpr int kMostStages = 3;
constexpr int kStageBarriers = 2 * kMostStages * int(sizeof(uint64_t));

template <int kTokens>
class ActivationStages {
  using Stage = StageOf<kTokens>;

 public:
  // By every thread of the block, which meets afterwards before it uses them. memory: the stages, then the barriers.
  DEVICE ActivationStages(std::byte* memory, int n_stages, int n_readers)
      : memory_(memory), n_stages_(n_stages), full_(reinterpret_cast<uint64_t*>(memory + n_stages * Stage::kBytes)) {
    if (threadIdx.x != 0) return;
    for (int i = 0; i < n_stages; ++i) {
      barrier_init(full_ + i, 1);
      barrier_init(empty(i), unsigned(n_readers));
    }
    fence_barrier_init();
  }

  // By one warp: a column tile of all tokens into the next stage.
  DEVICE void bring(const DecodeWork& work, int column_tile) {
    const int n = (work.n + 7) / 8 * 8;
    if (rounds_ > 0) barrier_wait(empty(at_), parity_ ^ 1);
    constexpr unsigned kPlaneBytes = kTileColumns, kScaleBytes = kTileColumns / 16 * sizeof(float),
                       kSumBytes = kTileColumns / 16 * sizeof(int32_t);
    if (lane_id() == 0) barrier_arrive_expect(full_ + at_, unsigned(n) * (2 * kPlaneBytes + kScaleBytes + kSumBytes));
    sync_warp();
    std::byte* const to = memory_ + at_ * Stage::kBytes;
    const int64_t column = int64_t(column_tile) * kTileColumns;
    const int last = work.n - 1;
    for (int i = lane_id(); i < 2 * n; i += kWarp) {
      const int plane = i / 2 < last ? i : 2 * last + i % 2;
      copy_bulk(to + i * StagedRows::kPlane, work.planes + plane * work.padded + column, kPlaneBytes, full_ + at_);
    }
    if (const int i = lane_id(); i < n) {
      const int64_t first = (i < last ? i : last) * work.padded + column;
      copy_bulk(to + Stage::kScalesAt + i * StagedRows::kScales * int(sizeof(float)), work.scales + first / 16,
                kScaleBytes, full_ + at_);
      copy_bulk(to + Stage::kSumsAt + i * StagedRows::kSums * int(sizeof(int32_t)), work.sums + first / 16, kSumBytes,
                full_ + at_);
    }
    next();
  }

  // By every other warp, for every column tile in turn: wait, read, done.
  DEVICE const std::byte* wait() {
    barrier_wait(full_ + at_, parity_);
    return memory_ + at_ * Stage::kBytes;
  }
  DEVICE void done() {
    fence_proxy_async();  // between these loads and the copy to where they were
    sync_warp();
    if (lane_id() == 0) barrier_arrive(empty(at_));
    next();
  }

 private:
  DEVICE uint64_t* empty(int stage) const { return full_ + kMostStages + stage; }
  DEVICE void next() {
    if (++at_ < n_stages_) return;
    at_ = 0;
    parity_ ^= 1;
    rounds_ = 1;
  }

  std::byte* memory_;
  int n_stages_;
  uint64_t* full_;  // [kMostStages], then as many that say a stage is empty
  int at_ = 0;
  unsigned parity_ = 0;  // of the stage's round
  int rounds_ = 0;       // whether each was filled once
};

}  // namespace gristmill::cuda
