// Matrix products for one to eight tokens: bound by reading the weights once. Each warp streams its stretch of tiles
// through shared memory (copies are issued kDecodeStages tiles ahead, the first ones before the kernel ahead has ended)
// and multiplies them with the tensor cores: N = 8 columns are the two int8 planes of four tokens, or one plane of
// eight.
#include <algorithm>
#include <array>

#include "core/error.h"
#include "cuda/decode_float.h"
#include "cuda/decode_integer.h"
#include "cuda/decode_work.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/matmul.h"
#include "cuda/tile_layout.h"

namespace gristmill::cuda {
namespace {

constexpr int kSlotFloats = kTileRows * kDecodeColumns;

template <TypeId id>
constexpr int kStageBytes = (Tile<id>::kTileBytes + 127) / 128 * 128;
// Of one warp: stages, two slots for row tiles that it shares with others, barriers.
template <TypeId id>
constexpr int kWarpBytes = kDecodeStages * kStageBytes<id> + 2 * kSlotFloats * int(sizeof(float)) + 128;

DEVICE const DecodePart& part_of(const DecodeWork& work, int row_tile) {
  int p = 0;
  while (p + 1 < work.n_parts && row_tile >= work.parts[p + 1].first_row_tile) ++p;
  return work.parts[p];
}

template <TypeId id>
DEVICE const std::byte* tile_at(const DecodeWork& work, int64_t index) {
  const int row_tile = int(index / work.column_tiles), column_tile = int(index % work.column_tiles);
  const DecodePart& part = part_of(work, row_tile);
  return part.tiles +
         (int64_t(row_tile - part.first_row_tile) * work.column_tiles + column_tile) * Tile<id>::kTileBytes;
}

// Row `row` of a row tile for one token.
DEVICE void write_result(const DecodeWork& work, int row_tile, int row, int token, float value) {
  const DecodePart& part = part_of(work, row_tile);
  const int64_t r = int64_t(row_tile - part.first_row_tile) * kTileRows + row;
  if (r < part.n_rows && token < work.n) part.y[token * part.n_rows + r] = part.bias ? value + part.bias[r] : value;
}

// Tiles on their way to one warp.
template <TypeId id, bool kBulk>
class TileStream {
 public:
  DEVICE TileStream(const DecodeWork& work, std::byte* memory, int64_t begin, int64_t end)
      : work_(work),
        stages_(memory),
        full_(reinterpret_cast<uint64_t*>(memory + kDecodeStages * kStageBytes<id>)),
        begin_(begin),
        end_(end) {
    if constexpr (kBulk) {
      if (lane_id() == 0) {
        for (int i = 0; i < kDecodeStages; ++i) barrier_init(full_ + i, 1);
        fence_barrier_init();
      }
      sync_warp();
    }
    for (int i = 0; i < kDecodeStages - 1; ++i) issue(begin + i);
  }

  // The tile at this index; those before it have been read by every lane.
  DEVICE const std::byte* wait(int64_t index) {
    if constexpr (kBulk) {
      barrier_wait(full_ + stage(index), unsigned((index - begin_) / kDecodeStages) & 1u);
    } else {
      wait_copies<kDecodeStages - 2>();
    }
    sync_warp();
    issue(index + kDecodeStages - 1);
    return stages_ + stage(index) * kStageBytes<id>;
  }

 private:
  DEVICE int stage(int64_t index) const { return int((index - begin_) % kDecodeStages); }

  DEVICE void issue(int64_t index) {
    constexpr int kBytes = Tile<id>::kTileBytes;
    if (index < end_) {
      const std::byte* from = tile_at<id>(work_, index);
      std::byte* to = stages_ + stage(index) * kStageBytes<id>;
      if constexpr (kBulk) {
        if (lane_id() == 0) {
          barrier_arrive_expect(full_ + stage(index), kBytes);
          copy_bulk(to, from, kBytes, full_ + stage(index));
        }
      } else {
        for (int i = lane_id() * 16; i < kBytes; i += kWarp * 16) copy_async16(to + i, from + i);
      }
    }
    if constexpr (!kBulk) commit_copies();
  }

  const DecodeWork& work_;
  std::byte* stages_;
  uint64_t* full_;
  int64_t begin_, end_;
};

// What one warp has of a row tile: slot 0 if it begins its stretch there, else slot 1.
DEVICE float* slot_of(std::byte* shared, int warp, int bytes_of_warp, int which) {
  std::byte* end = shared + (warp + 1) * bytes_of_warp;
  return reinterpret_cast<float*>(end - (2 - which) * kSlotFloats * int(sizeof(float)));
}

template <TypeId id>
using Accumulator = std::conditional_t<Tile<id>::kQuantized, IntegerSums<id>, FloatSums<id>>;

// kTokens: 4 or 8, at least work.n.
template <TypeId id, int kTokens, bool kBulk>
KERNEL(32 * kDecodeMaxWarps, 1)
decode_matmul_kernel(GRID_CONSTANT DecodeWork work) {
  SMEM(std::byte, shared);
  const int n_warps = int(blockDim.x) / kWarp, warp = warp_id();
  const int64_t n_tiles = int64_t(work.row_tiles) * work.column_tiles, width = work.column_tiles;
  const int64_t block_begin = stretch_begin(0, n_tiles, blockIdx.x, gridDim.x);
  const int64_t block_end = stretch_begin(0, n_tiles, blockIdx.x + 1, gridDim.x);
  const int64_t block_tiles = block_end - block_begin;
  const int64_t begin = stretch_begin(block_begin, block_tiles, warp, n_warps);
  const int64_t end = stretch_begin(block_begin, block_tiles, warp + 1, n_warps);

  {
    TileStream<id, kBulk> stream(work, shared + warp * kWarpBytes<id>, begin, end);
    grid_dependency_wait();
    typename Accumulator<id>::template Of<kTokens> sums;
    sums.clear();
    for (int64_t i = begin; i < end; ++i) {
      sums.add(work, stream.wait(i), int(i % width));
      const int row_tile = int(i / width);
      if (i + 1 < end && (i + 1) % width != 0) continue;
      const int64_t row_begin = row_tile * width;
      if (row_begin >= begin && row_begin + width <= end) {
        sums.take([&](int row, int token, float value) { write_result(work, row_tile, row, token, value); });
      } else {
        float* slot = slot_of(shared, warp, kWarpBytes<id>, begin / width == row_tile ? 0 : 1);
        sums.take([&](int row, int token, float value) { slot[row * kTokens + token] = value; });
      }
      sums.clear();
    }
  }
  grid_dependency_launch();
  sync_block();

  // Row tiles that several warps have, of this block or of others: one warp sums each.
  for (int row_tile = int(block_begin / width) + warp; row_tile * width < block_end; row_tile += n_warps) {
    const int64_t row_begin = row_tile * width, row_end = row_begin + width;
    const int64_t here_begin = row_begin > block_begin ? row_begin : block_begin;
    const int64_t here_end = row_end < block_end ? row_end : block_end;
    const int first = int(stretch_of(here_begin - block_begin, block_tiles, n_warps));
    const int last = int(stretch_of(here_end - 1 - block_begin, block_tiles, n_warps));
    const bool whole = here_begin == row_begin && here_end == row_end;
    if (first == last && whole) continue;  // written already
    float* own = work.partials + (int64_t(blockIdx.x) * 2 + (block_begin / width == row_tile ? 0 : 1)) * kSlotFloats;
    for (int e = lane_id(); e < kTileRows * kTokens; e += kWarp) {
      float sum = 0.0f;
      for (int w = first; w <= last; ++w) {
        const int64_t w_begin = stretch_begin(block_begin, block_tiles, w, n_warps);
        if (w_begin == stretch_begin(block_begin, block_tiles, w + 1, n_warps)) continue;  // no tiles
        sum += slot_of(shared, w, kWarpBytes<id>, w_begin / width == row_tile ? 0 : 1)[e];
      }
      if (whole) {
        write_result(work, row_tile, e / kTokens, e % kTokens, sum);
      } else {
        own[e] = sum;
      }
    }
    if (whole) continue;
    fence_device();
    sync_warp();
    const unsigned first_block = unsigned(stretch_of(row_begin, n_tiles, gridDim.x));
    const unsigned last_block = unsigned(stretch_of(row_end - 1, n_tiles, gridDim.x));
    unsigned arrived = 0;
    if (lane_id() == 0) arrived = atomic_add(work.counters + row_tile, 1u);
    if (shuffle(arrived, 0) != last_block - first_block) continue;
    // The last to come.
    fence_device();
    if (lane_id() == 0) work.counters[row_tile] = 0;
    for (int e = lane_id(); e < kTileRows * kTokens; e += kWarp) {
      float sum = 0.0f;
      for (unsigned b = first_block; b <= last_block; ++b) {
        const int64_t b_begin = stretch_begin(0, n_tiles, b, gridDim.x);
        sum +=
            load_coherent(work.partials + (int64_t(b) * 2 + (b_begin / width == row_tile ? 0 : 1)) * kSlotFloats + e);
      }
      write_result(work, row_tile, e / kTokens, e % kTokens, sum);
    }
  }
}

template <TypeId id, int kTokens>
void launch_one(const DecodeWork& work, const DeviceInfo& device, bool dependent, Stream stream) {
  const int warps = int(std::min<int64_t>(kDecodeMaxWarps, device.shared_bytes_per_block / kWarpBytes<id>));
  if (warps < 1) throw DeviceError("[cuda] " + device.name + " has too little shared memory for decode_matmul");
  const int64_t tiles = int64_t(work.row_tiles) * work.column_tiles;
  const unsigned blocks = unsigned(std::min<int64_t>(device.multiprocessors, tiles));
  const LaunchConfig config{{blocks}, {unsigned(warps * kWarp)}, size_t(warps) * kWarpBytes<id>, stream, dependent};
  if (device.bulk_copies()) {
    launch("decode_matmul", decode_matmul_kernel<id, kTokens, true>, config, work);
  } else {
    launch("decode_matmul", decode_matmul_kernel<id, kTokens, false>, config, work);
  }
}

// Products of one format.
template <TypeId id>
void launch_group(std::span<const DeviceProduct> products, const DecodeInput& x, int n,
                  const DecodeWorkspace& workspace, const DeviceInfo& device, bool dependent, Stream stream) {
  DecodeWork work{};
  const Matrix& m = products.front().matrix;
  work.column_tiles = int(m.column_tiles());
  work.n_cols = m.n_cols;
  work.padded = padded_columns(m.n_cols);
  work.partials = workspace.partials;
  work.counters = workspace.counters;
  for (const DeviceProduct& p : products) {
    work.parts[work.n_parts++] = {p.matrix.tiles, p.bias, p.y, p.matrix.n_rows, work.row_tiles};
    work.row_tiles += int(p.matrix.row_tiles());
  }
  for (int first = 0; first < n; first += kDecodeColumns) {
    work.n = std::min(kDecodeColumns, n - first);
    if (x.floats) work.floats = x.floats + first * work.n_cols;
    if (x.quantized.planes) {
      work.planes = x.quantized.planes + first * 2 * work.padded;
      work.scales = x.quantized.scales + first * work.padded / 32;
      work.sums = x.quantized.sums + first * work.padded / 16;
    }
    if (work.n <= 4) {
      launch_one<id, 4>(work, device, dependent, stream);
    } else {
      launch_one<id, 8>(work, device, dependent, stream);
    }
    for (int p = 0; p < work.n_parts; ++p) work.parts[p].y += work.n * work.parts[p].n_rows;
  }
}

}  // namespace

int64_t decode_partials(const DeviceInfo& device) { return int64_t(device.multiprocessors) * 2 * kSlotFloats; }

void decode_matmul(std::span<const DeviceProduct> products, const DecodeInput& x, int n,
                   const DecodeWorkspace& workspace, const DeviceInfo& device, bool dependent, Stream stream) {
  std::array<DeviceProduct, kDecodeParts> group;
  for (size_t i = 0; i < products.size(); ++i) {
    const TypeId format = products[i].matrix.format;
    const auto same = [&](const DeviceProduct& p) { return p.matrix.format == format; };
    if (std::any_of(products.begin(), products.begin() + ptrdiff_t(i), same)) continue;  // went with an earlier one
    size_t count = 0;
    const auto flush = [&] {
      if (count == 0) return;
      const std::span<const DeviceProduct> some(group.data(), count);
      with_format(format, [&]<TypeId id>() { launch_group<id>(some, x, n, workspace, device, dependent, stream); });
      count = 0;
    };
    for (size_t j = i; j < products.size(); ++j) {
      if (!same(products[j])) continue;
      group[count++] = products[j];
      if (count == group.size()) flush();
    }
    flush();
  }
}

}  // namespace gristmill::cuda
