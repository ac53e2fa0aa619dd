// Row tiles of a matrix as plain rows of halves, for the products of prefill: one pass over the weights whose cost many
// tokens share.
#include "cuda/device/arithmetic.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"
#include "cuda/half_order.h"
#include "cuda/matrix.h"
#include "cuda/tile_codes.h"
#include "cuda/tile_scales.h"

namespace gristmill::cuda {
namespace {

constexpr int kWarps = 4;

// Four codes of a row, scaled as csrc/formats scales them, rounded to halves.
template <TypeId id>
DEVICE uint2 scale_codes(uint32_t codes, const GroupScale& s) {
  using Traits = CodeTraits<id>;
  float v[4];
  UNROLL
  for (int j = 0; j < 4; ++j) {
    const uint32_t byte = codes >> 8 * j & 0xffu;
    const int code = Traits::kSigned ? int(int8_t(byte)) : int(byte) - Traits::kZero;
    v[j] = s.scale * float(code);
    if (Traits::kHasMin) v[j] += s.min;
  }
  return uint2{pack_f16(v[0], v[1]), pack_f16(v[2], v[3])};
}

// Where a tile's halves go.
struct HalfTile {
  uint16_t* values;
  HalfOrder order;
  int64_t padded, row, column;  // of its element (0, 0)

  DEVICE uint16_t* at(int r, int c) const { return values + half_at(order, padded, row + r, column + c); }
};

// A warp makes one tile.
template <TypeId id>
DEVICE void dequantize_tile(const std::byte* tile, const HalfTile& to) {
  const int lane = lane_id(), g = lane / 4, t = lane % 4;
  if constexpr (Tile<id>::kQuantized) {
    TileCodes<id> codes(tile, lane);
    const TileScales<id> low_row(tile, g), high_row(tile, g + 8);
    UNROLL
    for (int group = 0; group < kTileColumns / 32; ++group) {
      uint32_t a[4];
      codes.fragment(group, a);
      UNROLL
      for (int i = 0; i < 4; ++i) {
        const int scale_group = CodeTraits<id>::kGroup == 32 ? group : 2 * group + i / 2;
        const GroupScale s = i % 2 == 0 ? low_row.at(scale_group) : high_row.at(scale_group);
        *reinterpret_cast<uint2*>(to.at(g + 8 * (i % 2), 32 * group + 16 * (i / 2) + 4 * t)) = scale_codes<id>(a[i], s);
      }
    }
  } else if constexpr (id == TypeId::F32) {
    for (int i = lane; i < kTileRows * kTileColumns / 4; i += kWarp) {
      const float4 v = reinterpret_cast<const float4*>(tile)[i];
      *reinterpret_cast<uint2*>(to.at(i / (kTileColumns / 4), i % (kTileColumns / 4) * 4)) =
          uint2{pack_f16(v.x, v.y), pack_f16(v.z, v.w)};
    }
  } else {
    for (int step = 0; step < kTileColumns / 16; ++step) {
      const uint4 v = *reinterpret_cast<const uint4*>(tile + step * 512 + lane * 16);
      const uint32_t words[4] = {v.x, v.y, v.z, v.w};
      UNROLL
      for (int i = 0; i < 4; ++i) {
        uint32_t pair = words[i];
        if (id == TypeId::BF16) pair = pack_f16(bf16_to_f32(uint16_t(pair)), bf16_to_f32(uint16_t(pair >> 16)));
        *reinterpret_cast<uint32_t*>(to.at(g + 8 * (i % 2), 16 * step + 8 * (i / 2) + 2 * t)) = pair;
      }
    }
  }
}

// Block (x, y): column tiles kWarps x to kWarps x + 3 of row tile y.
template <TypeId id>
KERNEL(kWarps* kWarp, 4)
dequantize_tiles(const std::byte* tiles, int column_tiles, HalfOrder order, uint16_t* out) {
  const int column_tile = int(blockIdx.x) * kWarps + warp_id();
  if (column_tile >= column_tiles) return;
  dequantize_tile<id>(tiles + (int64_t(blockIdx.y) * column_tiles + column_tile) * Tile<id>::kTileBytes,
                      {out, order, int64_t(column_tiles) * kTileColumns, int64_t(blockIdx.y) * kTileRows,
                       int64_t(column_tile) * kTileColumns});
}

}  // namespace

void dequantize_halves(const Matrix& matrix, int64_t first_row_tile, int row_tiles, HalfOrder order, uint16_t* out,
                       Stream stream) {
  with_format(matrix.format, [&]<TypeId id>() {
    const int64_t column_tiles = matrix.column_tiles();
    launch(
        "dequantize_tiles", dequantize_tiles<id>,
        {{unsigned((column_tiles + kWarps - 1) / kWarps), unsigned(row_tiles)}, {unsigned(kWarps * kWarp)}, 0, stream},
        matrix.tiles + first_row_tile * column_tiles * Tile<id>::kTileBytes, int(column_tiles), order, out);
  });
}

}  // namespace gristmill::cuda
