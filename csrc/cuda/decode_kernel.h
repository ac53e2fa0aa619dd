// Matrix products for few tokens: bound by reading the weights once. Each warp streams its stretch of tiles through
// shared memory (copies are issued a few tiles ahead, the first ones before the kernel ahead has ended) and
// multiplies them with the tensor cores. The kernels of all formats are this one; decode_*.cu make them.
#pragma once

#include <algorithm>

#include "core/error.h"
#include "cuda/decode_finish.h"
#include "cuda/decode_float.h"
#include "cuda/decode_integer.h"
#include "cuda/decode_work.h"
#include "cuda/tile_layout.h"

namespace gristmill::cuda {

// Launches the kernel of a format; work.n is at most kDecodeColumns.
template <TypeId id>
void launch_decode(const DecodeWork& work, const DeviceInfo& device, bool dependent, Stream stream);

// How many shares a warp takes: many tokens have many sums, and eight (four where groups are 16 weights) do not fit the
// 128 registers that sixteen warps leave each thread.
template <TypeId id, int kTokens>
constexpr int kWarpShares =
    kTokens > 8 || (Tile<id>::kQuantized && kTokens > (CodeTraits<id>::kGroup == 16 ? 1 : 4)) ? 2 : 1;

// Of a block. Where an SM has room for two, the next kernel's first copies begin beside this one's last sums.
template <int kResident>
constexpr int kMostShares = kResident == 2 ? 12 : kDecodeShares;
// Formats whose sums of one token fit the 80 registers that two blocks of twelve warps leave each thread on sm_90; the
// others spill there (check_kernels.py), or are floats. Without bulk copies Q4_0 and Q4_K spill too.
template <TypeId id>
constexpr bool kFitsTwice = id == TypeId::Q4_0 || id == TypeId::Q5_0 || id == TypeId::Q8_0 || id == TypeId::Q4_K ||
                            id == TypeId::Q5_K || id == TypeId::IQ4_NL || id == TypeId::IQ4_XS;

template <TypeId id>
constexpr int kStageBytes = (Tile<id>::kTileBytes + 127) / 128 * 128;
// Tiles in flight for a warp that waits: sixteen warps have room for three of all but the float formats.
template <TypeId id>
constexpr int kStages = Tile<id>::kTileBytes > 8192 ? 2 : 3;
template <int kTokens>
constexpr int kSlotFloats = kTileRows * kTokens;
// Of one warp: stages, barriers; of one share: two slots for row tiles that it has not whole.
template <TypeId id>
constexpr int kStreamBytes = kStages<id> * kStageBytes<id> + 128;
template <int kTokens>
constexpr int kShareBytes = 2 * kSlotFloats<kTokens> * int(sizeof(float));

// Row `row` of a row tile for one token.
DEVICE void write_result(const DecodeWork& work, int row_tile, int row, int token, float value) {
  const RowTile at = locate(work, row_tile);
  const DecodePart& part = work.parts[at.part];
  const int64_t r = int64_t(at.index) * kTileRows + row;
  if (r < part.n_rows && token < work.n) part.y[token * part.n_rows + r] = part.bias ? value + part.bias[r] : value;
}

// Tiles on their way to one warp, `count` of them from (row_tile, column) on: wait() for the next, read it, refill().
template <TypeId id, bool kBulk>
class TileStream {
 public:
  DEVICE TileStream(const DecodeWork& work, std::byte* memory, int row_tile, int column, int count)
      : work_(work),
        stages_(memory),
        full_(reinterpret_cast<uint64_t*>(memory + kStages<id> * kStageBytes<id>)),
        row_tile_(row_tile),
        left_(count) {
    if constexpr (kBulk) {
      if (lane_id() == 0) {
        for (int i = 0; i < kStages<id>; ++i) barrier_init(full_ + i, 1);
        fence_barrier_init();
      }
      sync_warp();
    }
    if (left_ > 0) start_row(column);
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
  DEVICE void start_row(int column) {
    const RowTile at = locate(work_, row_tile_);
    next_ = work_.parts[at.part].tiles + (int64_t(at.index) * work_.column_tiles + column) * Tile<id>::kTileBytes;
    in_row_ = work_.column_tiles - column < left_ ? work_.column_tiles - column : left_;
    left_ -= in_row_;
  }

  DEVICE void issue() {
    constexpr int kBytes = Tile<id>::kTileBytes;
    if (in_row_ > 0) {
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
      if (--in_row_ == 0 && left_ > 0) {
        ++row_tile_;
        start_row(0);
      }
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
  int row_tile_;         // of the next copy
  int in_row_ = 0;       // tiles to be copied of that row tile
  int left_;             // and of those behind it
  int stage_ = 0;        // that is read next and then filled
  unsigned parity_ = 0;  // of its barrier
};

template <TypeId id, int kTokens>
using Sums = std::conditional_t<Tile<id>::kQuantized, IntegerSums<id, kTokens>, FloatSums<id, kTokens>>;

// Of the two slots of a block or a share that begins at tile `begin`: the one for a row tile that it has a part of.
DEVICE int slot_of(int begin, int row_begin) { return begin >= row_begin ? 0 : 1; }

// A block's place on the line of tiles, and its slots in shared memory.
template <int kTokens>
struct Stretch {
  int begin, end;
  EqualParts shares;
  int n_shares;
  float* slots;

  DEVICE int share_begin(int share) const { return begin + shares.begin(share); }
  // The share that holds a tile of the block. All lanes of the warp call it.
  DEVICE int share_of(int tile) const {
    const bool before = lane_id() < n_shares && share_begin(lane_id()) <= tile;
    return int(count_bits(warp_ballot(before))) - 1;
  }
  // What a share has of the row tile that begins at row_begin.
  DEVICE float* slot(int share, int row_begin) const {
    return slots + (2 * share + slot_of(share_begin(share), row_begin)) * kSlotFloats<kTokens>;
  }
};

// What blocks first to last have of element e of a row tile, in order.
template <int kTokens>
DEVICE float sum_blocks(const DecodeWork& work, int first, int last, int row_begin, int e) {
  constexpr int kAtOnce = 4;  // loads that wait for L2 together
  float sum = 0.0f;
  for (int block = first; block <= last; block += kAtOnce) {
    float v[kAtOnce];
    UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int slot = 2 * (block + i) + slot_of(work.blocks.begin(block + i), row_begin);
      v[i] = block + i <= last ? load_coherent(work.partials + int64_t(slot) * kSlotFloats<kTokens> + e) : 0.0f;
    }
    UNROLL
    for (int i = 0; i < kAtOnce; ++i) sum += v[i];
  }
  return sum;
}

// Row tiles that several shares have, of this block or of others: one warp sums each.
template <int kTokens>
DEVICE void join_row_tiles(const DecodeWork& work, const Stretch<kTokens>& s, const BlockGroups& groups,
                           int first_row_tile) {
  const int n_warps = int(blockDim.x) / kWarp, width = work.column_tiles;
  for (int row_tile = first_row_tile + warp_id(); row_tile * width < s.end; row_tile += n_warps) {
    const int row_begin = row_tile * width, row_end = row_begin + width;
    const int here_begin = row_begin > s.begin ? row_begin : s.begin, here_end = row_end < s.end ? row_end : s.end;
    const int first = s.share_of(here_begin), last = s.share_of(here_end - 1);
    const bool whole = here_begin == row_begin && here_end == row_end;
    if (first == last && whole) continue;  // written already
    const int block = int(blockIdx.x);
    float* own = work.partials + int64_t(2 * block + slot_of(s.begin, row_begin)) * kSlotFloats<kTokens>;
    for (int e = lane_id(); e < kSlotFloats<kTokens>; e += kWarp) {
      float sum = 0.0f;
      for (int share = first; share <= last; ++share) sum += s.slot(share, row_begin)[e];
      if (whole) {
        write_result(work, row_tile, e / kTokens, e % kTokens, sum);
      } else {
        own[e] = sum;
      }
    }
    if (!whole) {
      const int first_block = here_begin == row_begin ? block : work.blocks.of(row_begin);
      const int last_block = here_end == row_end ? block : work.blocks.of(row_end - 1);
      if (!arrives_last(work.counters + row_tile, last_block - first_block + 1)) continue;
      for (int e = lane_id(); e < kSlotFloats<kTokens>; e += kWarp)
        write_result(work, row_tile, e / kTokens, e % kTokens,
                     sum_blocks<kTokens>(work, first_block, last_block, row_begin, e));
    }
    finish_row_tile<kTokens>(work, groups, row_tile);
  }
}

// kTokens: at least work.n. kResident: blocks that an SM has room for.
template <TypeId id, int kTokens, bool kBulk, int kResident>
KERNEL((kWarp * kMostShares<kResident> / kWarpShares<id, kTokens>), kResident)
decode_matmul_kernel(GRID_CONSTANT DecodeWork work) {
  if constexpr (is_for_this_code<kBulk>()) {
    SMEM(std::byte, shared);
    // Once every block has said so, the kernel behind gets what room this one leaves, and waits for its end there.
    grid_dependency_launch();
    const int n_warps = int(blockDim.x) / kWarp, block = int(blockIdx.x), width = work.column_tiles;
    const Stretch<kTokens> stretch{work.blocks.begin(block),
                                   work.blocks.begin(block + 1),
                                   {work.shares.each, work.shares.rest + (block < work.blocks.rest ? 1 : 0)},
                                   work.n_shares,
                                   reinterpret_cast<float*>(shared + n_warps * kStreamBytes<id>)};
    // A warp's shares follow each other: one stream of tiles.
    const int share0 = warp_id() * kWarpShares<id, kTokens>, share1 = share0 + kWarpShares<id, kTokens>;
    const int warp_begin = stretch.share_begin(share0);
    const int first_row_tile = int(unsigned(stretch.begin) / unsigned(width));
    int row_tile = int(unsigned(warp_begin) / unsigned(width)), column = warp_begin - row_tile * width;
    const int warp_end = stretch.share_begin(share1);
    TileStream<id, kBulk> stream(work, shared + warp_id() * kStreamBytes<id>, row_tile, column, warp_end - warp_begin);
    if (warp_end > warp_begin) prefetch_finish(work, row_tile, int(unsigned(warp_end - 1) / unsigned(width)) + 1);
    auto* const arrivals = reinterpret_cast<unsigned*>(stretch.slots + 2 * work.n_shares * kSlotFloats<kTokens>);
    const BlockGroups groups(work, arrivals, stretch.begin, stretch.end, first_row_tile);
    grid_dependency_wait();
    Sums<id, kTokens> sums;
    sums.clear();
    typename Sums<id, kTokens>::Cursor cursor(work, column);
    for (int share = share0; share < share1; ++share) {
      const int begin = stretch.share_begin(share), end = stretch.share_begin(share + 1);
      for (int i = begin; i < end;) {
        const int n = width - column < end - i ? width - column : end - i;  // of the row tile
        for (int j = 0; j < n; ++j) {
          const auto inputs = cursor.next();
          sums.add(work, stream.wait(), inputs);
          stream.refill();
        }
        i += n;
        column += n;
        const int row_begin = row_tile * width;
        if (row_begin >= begin && row_begin + width <= end) {
          sums.take([&](int row, int token, float value) { write_result(work, row_tile, row, token, value); });
          finish_row_tile<kTokens>(work, groups, row_tile);
        } else {
          float* slot = stretch.slot(share, row_begin);
          sums.take([&](int row, int token, float value) { slot[row * kTokens + token] = value; });
        }
        sums.clear();
        sync_warp();  // lanes part on the way, and the next products want them together
        if (column < width) continue;
        column = 0;
        ++row_tile;
        cursor = {work, column};
      }
    }
    sync_block();
    join_row_tiles(work, stretch, groups, first_row_tile);
  } else {
    wrong_code();
  }
}

template <TypeId id, int kTokens>
void launch_tokens(DecodeWork work, const DeviceInfo& device, bool dependent, Stream stream) {
  const auto bulk = decode_matmul_kernel<id, kTokens, true, 1>;
  const bool copies_bulk = device.bulk_copies() && runs_sm90_code(bulk);
  const bool twice = kFitsTwice<id> && copies_bulk && work.resident == 2;
  // As many shares for any number of tokens, so that sums have the same parts; an even number, for warps with two.
  constexpr int64_t kShare = std::max(kStreamBytes<id> + kShareBytes<8>,
                                      kStreamBytes<id> / kWarpShares<id, kDecodeColumns> + kShareBytes<kDecodeColumns>);
  constexpr int64_t kCounters = kBlockGroups * sizeof(unsigned);
  // An SM keeps 1 KiB of its memory for each block.
  const int64_t memory = twice ? device.shared_bytes_per_multiprocessor / 2 - 1024 : device.shared_bytes_per_block;
  const int most = twice ? kMostShares<2> : kMostShares<1>;
  const int room = int(std::min<int64_t>(most, (memory - kCounters) / kShare));
  if (room < 2) throw DeviceError("[cuda] " + device.name + " has too little shared memory for decode_matmul");
  work.n_shares = room / 2 * 2;
  const int n_tiles = work.row_tiles * work.column_tiles, blocks = std::min(device.multiprocessors, n_tiles);
  work.blocks = equal_parts(n_tiles, blocks);
  work.shares = equal_parts(work.blocks.each, work.n_shares);
  const int warps = work.n_shares / kWarpShares<id, kTokens>;
  const size_t bytes =
      size_t(warps) * kStreamBytes<id> + size_t(work.n_shares) * kShareBytes<kTokens> + size_t(kCounters);
  const LaunchConfig config{{unsigned(blocks)}, {unsigned(warps * kWarp)}, bytes, stream, dependent};
  auto kernel = copies_bulk ? bulk : decode_matmul_kernel<id, kTokens, false, 1>;
  if constexpr (kTokens == 1 && kFitsTwice<id>) {
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
