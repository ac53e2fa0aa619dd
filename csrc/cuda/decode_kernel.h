// Matrix products for few tokens: bound by reading the weights once. Each warp streams its stretch of tiles through
// shared memory (copies are issued a few tiles ahead, the first ones before the kernel ahead has ended) and
// multiplies them with the tensor cores. The kernels of all formats are this one; decode_*.cu make them.
#pragma once

#include <algorithm>

#include "core/error.h"
#include "cuda/decode_finish.h"
#include "cuda/decode_float.h"
#include "cuda/decode_forms.h"
#include "cuda/decode_integer.h"
#include "cuda/decode_line.h"
#include "cuda/decode_work.h"
#include "cuda/tile_layout.h"

namespace gristmill::cuda {

// Launches the kernel of a format; work.n is at most kDecodeColumns.
template <TypeId id>
void launch_decode(const DecodeWork& work, const DeviceInfo& device, bool dependent, Stream stream);

// How many rows of a group a warp takes: many tokens have many sums, and eight (four where groups are 16 weights) do
// not fit the 128 registers that sixteen warps leave each thread.
template <TypeId id, int kTokens>
constexpr int kWarpRows =
    kTokens > 8 || (Tile<id>::kQuantized && kTokens > (CodeTraits<id>::kGroup == 16 ? 1 : 4)) ? 2 : 1;

// Of a group. Where an SM has room for two blocks, the next kernel's first copies begin beside this one's last sums.
template <int kResident>
constexpr int kMostRows = kResident == 2 ? 12 : kDecodeShares;

// Warps that bring activations of many tokens to shared memory for the others.
template <TypeId id, int kTokens, bool kBulk>
constexpr int kStagingWarps = kBulk && Tile<id>::kQuantized && kTokens >= 8 ? 1 : 0;

template <TypeId id>
constexpr int kStageBytes = (Tile<id>::kTileBytes + 127) / 128 * 128;
// Tiles in flight for a warp that waits: sixteen warps have room for three of all but the float formats.
template <TypeId id>
constexpr int kStages = Tile<id>::kTileBytes > 8192 ? 2 : 3;
template <int kTokens>
constexpr int kSlotFloats = kTileRows * kTokens;
// Of one warp: stages, barriers.
template <TypeId id>
constexpr int kStreamBytes = kStages<id> * kStageBytes<id> + 128;
constexpr int kCounterBytes = kBlockGroups * sizeof(unsigned);

// Row `row` of a row tile for one token.
DEVICE void write_result(const DecodeWork& work, int row_tile, int row, int token, float value) {
  const RowTile at = locate(work, row_tile);
  const DecodePart& part = work.parts[at.part];
  const int64_t r = int64_t(at.index) * kTileRows + row;
  if (r < part.n_rows && token < work.n) part.y[token * part.n_rows + r] = part.bias ? value + part.bias[r] : value;
}

// The tiles of a warp's runs on their way to it: wait() for the next, read it, refill().
template <TypeId id, bool kBulk>
class TileStream {
 public:
  DEVICE TileStream(const DecodeWork& work, std::byte* memory, const Runs& runs)
      : work_(work),
        stages_(memory),
        full_(reinterpret_cast<uint64_t*>(memory + kStages<id> * kStageBytes<id>)),
        runs_(runs) {
    if constexpr (kBulk) {
      if (lane_id() == 0) {
        for (int i = 0; i < kStages<id>; ++i) barrier_init(full_ + i, 1);
        fence_barrier_init();
      }
      sync_warp();
    }
    start_run();
    for (int i = 0; i < kStages<id>; ++i) {
      issue();
      next_stage();
    }
    parity_ = 0;  // the first copies went once round; reading begins there
  }

  // The next tile.
  DEVICE const std::byte* wait() {
    if constexpr (kBulk) {
      barrier_wait(full_ + stage_, parity_);
    } else {
      wait_copies<kStages<id> - 1>();
      sync_warp();  // every lane has copied a part
    }
    return stages_ + stage_ * kStageBytes<id>;
  }
  // By every lane when it has read the tile: the next copy takes its place.
  DEVICE void refill() {
    if constexpr (kBulk) fence_proxy_async();  // between ordinary loads and a bulk copy to where they were
    sync_warp();
    issue();
    next_stage();
  }

 private:
  DEVICE void start_run() {
    if (!runs_.next()) return;
    const Run& run = runs_.at();
    const RowTile at = locate(work_, work_.line.row_tile(run.group, run.row));
    next_ = work_.parts[at.part].tiles + (int64_t(at.index) * work_.column_tiles + run.begin) * Tile<id>::kTileBytes;
    in_run_ = run.end - run.begin;
  }

  DEVICE void issue() {
    constexpr int kBytes = Tile<id>::kTileBytes;
    if (in_run_ > 0) {
      std::byte* to = stages_ + stage_ * kStageBytes<id>;
      if constexpr (kBulk) {
        if (lane_id() == 0) {
          barrier_arrive_expect(full_ + stage_, kBytes);
          copy_bulk(to, next_, kBytes, full_ + stage_, first_to_go());
        }
      } else {
        for (int i = lane_id() * 16; i < kBytes; i += kWarp * 16) copy_async16(to + i, next_ + i, 16, first_to_go());
      }
      next_ += kBytes;
      if (--in_run_ == 0) start_run();
    }
    if constexpr (!kBulk) commit_copies();
  }

  DEVICE void next_stage() {
    if (++stage_ < kStages<id>) return;
    stage_ = 0;
    parity_ ^= 1;
  }

  const DecodeWork& work_;
  std::byte* stages_;
  uint64_t* full_;
  const std::byte* next_ = nullptr;
  Runs runs_;            // at the next copy's
  int in_run_ = 0;       // tiles to be copied of that run
  int stage_ = 0;        // that is read next and then filled
  unsigned parity_ = 0;  // of its barrier
};

template <TypeId id, int kTokens>
using Sums = std::conditional_t<Tile<id>::kQuantized, IntegerSums<id, kTokens>, FloatSums<id, kTokens>>;

// Where a block's sums of a row of a group are that it has not whole: as its first group, or as its last.
template <int kTokens>
DEVICE float* partial_of(const DecodeWork& work, int block, int group, int row) {
  const int slot = work.line.blocks.begin(block) >= work.line.group_begin(group) ? 0 : 1;
  return work.partials + (int64_t(2 * block + slot) * kDecodeShares + row) * kSlotFloats<kTokens>;
}

// What blocks first to last have of element e of a row tile, in order.
template <int kTokens>
DEVICE float sum_blocks(const DecodeWork& work, int first, int last, int group, int row, int e) {
  constexpr int kAtOnce = 4;  // loads that wait for L2 together
  float sum = 0.0f;
  for (int block = first; block <= last; block += kAtOnce) {
    float v[kAtOnce];
    UNROLL
    for (int i = 0; i < kAtOnce; ++i)
      v[i] = block + i <= last ? load_coherent(partial_of<kTokens>(work, block + i, group, row) + e) : 0.0f;
    UNROLL
    for (int i = 0; i < kAtOnce; ++i) sum += v[i];
  }
  return sum;
}

// A warp's sums of a run, to where they belong: into y where they are the whole row tile's, or where this is the last
// block to come to it, which adds them up.
template <int kTokens, class S>
DEVICE void bring_sums(const DecodeWork& work, const BlockGroups& groups, const Run& run, const S& sums) {
  const int row_tile = work.line.row_tile(run.group, run.row);
  if (run.begin == 0 && run.end == work.column_tiles) {
    sums.take([&](int row, int token, float value) { write_result(work, row_tile, row, token, value); });
  } else {
    float* const own = partial_of<kTokens>(work, int(blockIdx.x), run.group, run.row);
    sums.take([&](int row, int token, float value) { own[row * kTokens + token] = value; });
    const int first = work.line.first_block(run.group, run.row), last = work.line.last_block(run.group, run.row);
    if (!arrives_last(work.counters + row_tile, last - first + 1)) return;
    for (int e = lane_id(); e < kSlotFloats<kTokens>; e += kWarp)
      write_result(work, row_tile, e / kTokens, e % kTokens,
                   sum_blocks<kTokens>(work, first, last, run.group, run.row, e));
  }
  finish_row_tile<kTokens>(work, groups, row_tile);
}

// Each warp for itself: activations come from L2, or from L1 where another one has read them.
template <TypeId id, int kTokens, bool kBulk>
DEVICE void multiply_runs(const DecodeWork& work, const BlockGroups& groups, TileStream<id, kBulk>& stream, Runs runs) {
  while (runs.next()) {
    const Run& run = runs.at();
    Sums<id, kTokens> sums;
    sums.clear();
    typename Sums<id, kTokens>::Cursor cursor(work, run.begin);
    for (int column = run.begin; column < run.end; ++column) {
      const auto inputs = cursor.next();
      sums.add(work, stream.wait(), inputs);
      stream.refill();
    }
    bring_sums<kTokens>(work, groups, run, sums);
    sync_warp();  // lanes part on the way, and the next products want them together
  }
}

// f(group, its first row of as many as there are warps, begin, end) for all column tiles that some warp has.
template <class F>
DEVICE void for_each_pass(const DecodeWork& work, const Stretch& s, int n_warps, F&& f) {
  for (int group = s.first.group; group <= s.last.group; ++group) {
    const int begin = group == s.first.group ? s.first.column : 0;
    const int end = group == s.last.group ? s.last.column + 1 : work.column_tiles;
    for (int row = 0; row < work.line.groups.size(group); row += n_warps) f(group, row, begin, end);
  }
}

// All warps together, activations from shared memory.
template <TypeId id, int kTokens, bool kBulk>
DEVICE void multiply_staged(const DecodeWork& work, const BlockGroups& groups, TileStream<id, kBulk>& stream,
                            ActivationStages<kTokens>& stages, int n_warps) {
  using StagedSums = IntegerSums<id, kTokens, StagedRows>;
  using Stage = StageOf<kTokens>;
  for_each_pass(work, groups.stretch, n_warps, [&](int group, int row, int begin, int end) {
    row += warp_id();
    Run run{group, row, 0, 0};
    if (row < work.line.groups.size(group)) run = run_of(work.line, groups.stretch, group, row);
    StagedSums sums;
    sums.clear();
    for (int column = begin; column < end; ++column) {
      const std::byte* const stage = stages.wait();
      if (column >= run.begin && column < run.end) {
        sums.add(work, stream.wait(),
                 StagedSums::inputs_at(work, reinterpret_cast<const int8_t*>(stage),
                                       reinterpret_cast<const float*>(stage + Stage::kScalesAt),
                                       reinterpret_cast<const int32_t*>(stage + Stage::kSumsAt)));
        stream.refill();
      }
      stages.done();
    }
    if (run.begin < run.end) bring_sums<kTokens>(work, groups, run, sums);
    sync_warp();
  });
}

// kTokens: at least work.n. kResident: blocks that an SM has room for.
template <TypeId id, int kTokens, bool kBulk, int kResident>
KERNEL((kWarp * (kMostRows<kResident> / kWarpRows<id, kTokens> + kStagingWarps<id, kTokens, kBulk>)), kResident)
decode_matmul_kernel(GRID_CONSTANT DecodeWork work) {
  if constexpr (is_for_this_code<kBulk>()) {
    SMEM(std::byte, shared);
    // Once every block has said so, the kernel behind gets what room this one leaves, and waits for its end there.
    grid_dependency_launch();
    constexpr bool kStaged = kStagingWarps<id, kTokens, kBulk> > 0;
    const int n_warps = int(blockDim.x) / kWarp - kStagingWarps<id, kTokens, kBulk>;
    std::byte* const counters = shared + n_warps * kStreamBytes<id>;
    const Stretch stretch(work.line, int(blockIdx.x));
    const Runs runs(work.line, stretch, warp_id(), n_warps);
    if constexpr (kStaged) {
      ActivationStages<kTokens> stages(counters + kCounterBytes, work.stages, n_warps);
      const BlockGroups groups(work, reinterpret_cast<unsigned*>(counters), stretch);
      sync_block();
      prefetch_finish(work, stretch);
      if (warp_id() == n_warps) {
        grid_dependency_wait();
        for_each_pass(work, stretch, n_warps, [&](int, int, int begin, int end) {
          for (int column = begin; column < end; ++column) stages.bring(work, column);
        });
        return;
      }
      TileStream<id, kBulk> stream(work, shared + warp_id() * kStreamBytes<id>, runs);
      grid_dependency_wait();
      multiply_staged<id, kTokens, kBulk>(work, groups, stream, stages, n_warps);
    } else {
      TileStream<id, kBulk> stream(work, shared + warp_id() * kStreamBytes<id>, runs);
      prefetch_finish(work, stretch);
      const BlockGroups groups(work, reinterpret_cast<unsigned*>(counters), stretch);
      grid_dependency_wait();
      multiply_runs<id, kTokens, kBulk>(work, groups, stream, runs);
    }
  } else {
    wrong_code();
  }
}

template <TypeId id, int kTokens>
void launch_tokens(DecodeWork work, const DeviceInfo& device, bool dependent, Stream stream) {
  const auto bulk = decode_matmul_kernel<id, kTokens, true, 1>;
  const bool copies_bulk = device.bulk_copies() && runs_sm90_code(bulk);
  const bool twice = fits_twice(id) && copies_bulk && work.resident == 2;
  // An SM keeps 1 KiB of its memory for each block.
  const int64_t memory = twice ? device.shared_bytes_per_multiprocessor / 2 - 1024 : device.shared_bytes_per_block;
  const int most = twice ? kMostRows<2> : kMostRows<1>;
  // As many rows for any number of tokens, so that sums have the same parts; an even number, for warps with two.
  const int room = int(std::min<int64_t>(most, (memory - kCounterBytes) / kStreamBytes<id>)) / 2 * 2;
  if (room < 2) throw DeviceError("[cuda] " + device.name + " has too little shared memory for decode_matmul");
  work.line = make_line(work.row_tiles, work.column_tiles, device.multiprocessors, room);
  const int warps = room / kWarpRows<id, kTokens>;
  int64_t bytes = int64_t(warps) * kStreamBytes<id> + kCounterBytes, more_warps = 0;
  if (kStagingWarps<id, kTokens, true> > 0 && copies_bulk) {
    const int64_t left = device.shared_bytes_per_block - bytes - kStageBarriers, stage = StageOf<kTokens>::kBytes;
    work.stages = int(std::min<int64_t>(kMostStages, left / stage));
    if (work.stages < 1) throw DeviceError("[cuda] " + device.name + " has too little shared memory for decode_matmul");
    bytes += work.stages * stage + kStageBarriers;
    more_warps = 1;
  }
  const unsigned threads = unsigned(warps + more_warps) * kWarp;
  const LaunchConfig config{{unsigned(work.line.n_blocks)}, {threads}, size_t(bytes), stream, dependent};
  auto kernel = copies_bulk ? bulk : decode_matmul_kernel<id, kTokens, false, 1>;
  if constexpr (kTokens == 1 && fits_twice(id)) {
    if (twice) kernel = decode_matmul_kernel<id, kTokens, true, 2>;
  }
  launch("decode_matmul", kernel, config, work);
}

template <TypeId id>
void launch_decode(const DecodeWork& work, const DeviceInfo& device, bool dependent, Stream stream) {
  if (work.n == 1) return launch_tokens<id, 1>(work, device, dependent, stream);
  if (work.n <= 4) return launch_tokens<id, 4>(work, device, dependent, stream);
  if (work.n <= 8) return launch_tokens<id, 8>(work, device, dependent, stream);
  launch_tokens<id, kDecodeColumns>(work, device, dependent, stream);
}

}  // namespace gristmill::cuda
