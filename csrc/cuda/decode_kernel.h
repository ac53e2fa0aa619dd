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

// How many shares a warp takes: many tokens have many sums, and eight do not fit the 128 registers that sixteen warps
// leave each thread.
template <TypeId id, int kTokens>
constexpr int kWarpShares = kTokens > 8 || (kTokens > 4 && Tile<id>::kQuantized) ? 2 : 1;

template <TypeId id>
constexpr int kStageBytes = (Tile<id>::kTileBytes + 127) / 128 * 128;
// Tiles in flight for a warp.
template <TypeId id>
constexpr int kStages = Tile<id>::kTileBytes > 8192 ? 2 : 4;
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

// Tiles on their way to one warp, `count` of them from (row_tile, column) on.
template <TypeId id, bool kBulk>
class TileStream {
 public:
  DEVICE TileStream(const DecodeWork& work, std::byte* memory, int row_tile, int column, int count)
      : work_(work),
        stages_(memory),
        full_(reinterpret_cast<uint64_t*>(memory + kStages<id> * kStageBytes<id>)),
        row_tile_(row_tile),
        column_(column),
        left_(count) {
    if constexpr (kBulk) {
      if (lane_id() == 0) {
        for (int i = 0; i < kStages<id>; ++i) barrier_init(full_ + i, 1);
        fence_barrier_init();
      }
      sync_warp();
    }
    if (left_ > 0) next_ = row_start() + int64_t(column) * Tile<id>::kTileBytes;
    for (int i = 0; i < kStages<id> - 1; ++i) issue();
  }

  // The next tile; those before it have been read by every lane.
  DEVICE const std::byte* wait() {
    const unsigned stage = read_ % kStages<id>;
    if constexpr (kBulk) {
      barrier_wait(full_ + stage, read_ / kStages<id> & 1u);
      fence_proxy_async();  // the stage that issue() fills was read by ordinary loads
    } else {
      wait_copies<kStages<id> - 2>();
    }
    sync_warp();
    issue();
    ++read_;
    return stages_ + stage * kStageBytes<id>;
  }

 private:
  DEVICE const std::byte* row_start() const {
    const RowTile at = locate(work_, row_tile_);
    return work_.parts[at.part].tiles + int64_t(at.index) * work_.column_tiles * Tile<id>::kTileBytes;
  }

  DEVICE void issue() {
    constexpr int kBytes = Tile<id>::kTileBytes;
    if (left_ > 0) {
      const unsigned stage = issued_ % kStages<id>;
      std::byte* to = stages_ + stage * kStageBytes<id>;
      if constexpr (kBulk) {
        if (lane_id() == 0) {
          barrier_arrive_expect(full_ + stage, kBytes);
          copy_bulk(to, next_, kBytes, full_ + stage);
        }
      } else {
        for (int i = lane_id() * 16; i < kBytes; i += kWarp * 16) copy_async16(to + i, next_ + i);
      }
      ++issued_;
      --left_;
      next_ += kBytes;
      if (++column_ == work_.column_tiles && left_ > 0) {
        column_ = 0;
        ++row_tile_;
        next_ = row_start();
      }
    }
    if constexpr (!kBulk) commit_copies();
  }

  const DecodeWork& work_;
  std::byte* stages_;
  uint64_t* full_;
  const std::byte* next_ = nullptr;
  int row_tile_, column_, left_;
  unsigned issued_ = 0, read_ = 0;
};

template <TypeId id, int kTokens>
using Sums = std::conditional_t<Tile<id>::kQuantized, IntegerSums<id, kTokens>, FloatSums<id, kTokens>>;

// A block's place on the line of tiles, and its slots in shared memory.
template <int kTokens>
struct Stretch {
  int n_tiles, width;  // of the line; tiles of a row tile
  int begin, end;      // of the block
  int n_shares;
  float* slots;

  DEVICE int share_begin(int share) const { return stretch_begin(begin, end - begin, share, n_shares); }
  DEVICE int share_of(int tile) const { return stretch_of(tile - begin, end - begin, n_shares); }
  // What a share that begins at tile share_begin has of a row tile.
  DEVICE float* slot(int share, int share_begin, int row_tile) const {
    return slots + (2 * share + (share_begin / width == row_tile ? 0 : 1)) * kSlotFloats<kTokens>;
  }
};

// Row tiles that several shares have, of this block or of others: one warp sums each.
template <int kTokens>
DEVICE void join_row_tiles(const DecodeWork& work, const Stretch<kTokens>& s) {
  const int n_warps = int(blockDim.x) / kWarp;
  for (int row_tile = s.begin / s.width + warp_id(); row_tile * s.width < s.end; row_tile += n_warps) {
    const int row_begin = row_tile * s.width, row_end = row_begin + s.width;
    const int here_begin = row_begin > s.begin ? row_begin : s.begin, here_end = row_end < s.end ? row_end : s.end;
    const int first = s.share_of(here_begin), last = s.share_of(here_end - 1);
    const bool whole = here_begin == row_begin && here_end == row_end;
    if (first == last && whole) continue;  // written already
    const auto partial = [&](int block, int block_begin) {
      return work.partials + (int64_t(block) * 2 + (block_begin / s.width == row_tile ? 0 : 1)) * kSlotFloats<kTokens>;
    };
    float* own = partial(int(blockIdx.x), s.begin);
    for (int e = lane_id(); e < kSlotFloats<kTokens>; e += kWarp) {
      float sum = 0.0f;
      for (int share = first; share <= last; ++share) {
        const int share_begin = s.share_begin(share);
        if (share_begin == s.share_begin(share + 1)) continue;  // no tiles
        sum += s.slot(share, share_begin, row_tile)[e];
      }
      if (whole) {
        write_result(work, row_tile, e / kTokens, e % kTokens, sum);
      } else {
        own[e] = sum;
      }
    }
    if (!whole) {
      const int n_blocks = int(gridDim.x);
      const int first_block = stretch_of(row_begin, s.n_tiles, n_blocks);
      const int last_block = stretch_of(row_end - 1, s.n_tiles, n_blocks);
      if (!arrives_last(work.counters + row_tile, last_block - first_block + 1)) continue;
      for (int e = lane_id(); e < kSlotFloats<kTokens>; e += kWarp) {
        float sum = 0.0f;
        for (int b = first_block; b <= last_block; ++b)
          sum += load_coherent(partial(b, stretch_begin(0, s.n_tiles, b, n_blocks)) + e);
        write_result(work, row_tile, e / kTokens, e % kTokens, sum);
      }
    }
    finish_row_tile<kTokens>(work, row_tile);
  }
}

// kTokens: at least work.n.
template <TypeId id, int kTokens, bool kBulk>
KERNEL((kWarp * kDecodeShares / kWarpShares<id, kTokens>), 1)
decode_matmul_kernel(GRID_CONSTANT DecodeWork work) {
  if constexpr (is_for_this_code<kBulk>()) {
    SMEM(std::byte, shared);
    // Once every block has said so, the kernel behind gets what room this one leaves, and waits for its end there.
    grid_dependency_launch();
    const int n_warps = int(blockDim.x) / kWarp, block = int(blockIdx.x), n_blocks = int(gridDim.x);
    const int n_tiles = work.row_tiles * work.column_tiles, width = work.column_tiles;
    const Stretch<kTokens> stretch{n_tiles,
                                   width,
                                   stretch_begin(0, n_tiles, block, n_blocks),
                                   stretch_begin(0, n_tiles, block + 1, n_blocks),
                                   work.shares,
                                   reinterpret_cast<float*>(shared + n_warps * kStreamBytes<id>)};
    // A warp's shares follow each other: one stream of tiles.
    const int share0 = warp_id() * kWarpShares<id, kTokens>, share1 = share0 + kWarpShares<id, kTokens>;
    const int warp_begin = stretch.share_begin(share0);
    TileStream<id, kBulk> stream(work, shared + warp_id() * kStreamBytes<id>, warp_begin / width, warp_begin % width,
                                 stretch.share_begin(share1) - warp_begin);
    grid_dependency_wait();
    Sums<id, kTokens> sums;
    sums.clear();
    for (int share = share0; share < share1; ++share) {
      const int begin = stretch.share_begin(share), end = stretch.share_begin(share + 1);
      int row_tile = begin / width, column = begin % width;
      for (int i = begin; i < end; ++i) {
        const auto inputs = Sums<id, kTokens>::load(work, column);
        sums.add(work, stream.wait(), inputs);
        if (++column < width && i + 1 < end) continue;
        const int row_begin = row_tile * width;
        if (row_begin >= begin && row_begin + width <= end) {
          sums.take([&](int row, int token, float value) { write_result(work, row_tile, row, token, value); });
          finish_row_tile<kTokens>(work, row_tile);
        } else {
          float* slot = stretch.slot(share, begin, row_tile);
          sums.take([&](int row, int token, float value) { slot[row * kTokens + token] = value; });
        }
        sums.clear();
        column = 0;
        ++row_tile;
      }
    }
    sync_block();
    join_row_tiles(work, stretch);
  }
}

template <TypeId id, int kTokens>
void launch_tokens(DecodeWork work, const DeviceInfo& device, bool dependent, Stream stream) {
  // As many shares for any number of tokens, so that sums have the same parts; an even number, for warps with two.
  constexpr int64_t kShare = std::max(kStreamBytes<id> + kShareBytes<8>,
                                      kStreamBytes<id> / kWarpShares<id, kDecodeColumns> + kShareBytes<kDecodeColumns>);
  const int room = int(std::min<int64_t>(kDecodeShares, device.shared_bytes_per_block / kShare));
  if (room < 2) throw DeviceError("[cuda] " + device.name + " has too little shared memory for decode_matmul");
  work.shares = room / 2 * 2;
  const int warps = work.shares / kWarpShares<id, kTokens>;
  const size_t bytes = size_t(warps) * kStreamBytes<id> + size_t(work.shares) * kShareBytes<kTokens>;
  const unsigned blocks = unsigned(std::min(device.multiprocessors, work.row_tiles * work.column_tiles));
  const LaunchConfig config{{blocks}, {unsigned(warps * kWarp)}, bytes, stream, dependent};
  const auto bulk = decode_matmul_kernel<id, kTokens, true>;
  launch("decode_matmul",
         device.bulk_copies() && runs_sm90_code(bulk) ? bulk : decode_matmul_kernel<id, kTokens, false>, config, work);
}

template <TypeId id>
void launch_decode(const DecodeWork& work, const DeviceInfo& device, bool dependent, Stream stream) {
  if (work.n == 1) return launch_tokens<id, 1>(work, device, dependent, stream);
  if (work.n <= 4) return launch_tokens<id, 4>(work, device, dependent, stream);
  if (work.n <= 8) return launch_tokens<id, 8>(work, device, dependent, stream);
  launch_tokens<id, kDecodeColumns>(work, device, dependent, stream);
}

}  // namespace gristmill::cuda
