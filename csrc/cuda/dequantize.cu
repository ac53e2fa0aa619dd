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

// Where a tile's halves go. Sixteen rows lie in one row of panels, so that 64 columns further is a constant.
template <HalfOrder order>
struct HalfTile {
  static constexpr int kNextPanel = order == HalfOrder::kRows ? kPanel : kPanel * kPanel;
  uint16_t* first;  // element (0, 0)
  int64_t padded;

  DEVICE HalfTile(uint16_t* values, int64_t padded_columns, int64_t row, int64_t column)
      : first(values + half_at(order, padded_columns, row, column)), padded(padded_columns) {}
  DEVICE uint16_t* at(int r, int c) const {
    if (order == HalfOrder::kRows) return first + r * padded + c;
    return first + c / kPanel * kNextPanel + half_at(order, kPanel, r, c % kPanel);
  }
};

// A warp makes one tile.
template <TypeId id, HalfOrder order>
DEVICE void dequantize_tile(const std::byte* tile, const HalfTile<order>& to) {
  const int lane = lane_id(), g = lane / 4, t = lane % 4;
  if constexpr (Tile<id>::kQuantized) {
    TileCodes<id> codes(tile, lane);
    const TileScales<id> low_row(tile, g), high_row(tile, g + 8);
    uint16_t* of_row[2][4];  // rows g and g + 8, columns 16 k + 4 t
    UNROLL
    for (int k = 0; k < 4; ++k) {
      of_row[0][k] = to.at(g, 16 * k + 4 * t);
      of_row[1][k] = to.at(g + 8, 16 * k + 4 * t);
    }
    UNROLL
    for (int group = 0; group < kTileColumns / 32; ++group) {
      uint32_t a[4];
      codes.fragment(group, a);
      UNROLL
      for (int i = 0; i < 4; ++i) {
        const int scale_group = CodeTraits<id>::kGroup == 32 ? group : 2 * group + i / 2;
        const GroupScale s = i % 2 == 0 ? low_row.at(scale_group) : high_row.at(scale_group);
        store8(of_row[i % 2][2 * (group % 2) + i / 2] + group / 2 * HalfTile<order>::kNextPanel,
               scale_codes<id>(a[i], s));
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
template <TypeId id, HalfOrder order>
KERNEL(kWarps* kWarp, 4)
dequantize_tiles(const std::byte* tiles, int column_tiles, uint16_t* out) {
  const int column_tile = int(blockIdx.x) * kWarps + warp_id();
  if (column_tile >= column_tiles) return;
  const HalfTile<order> to(out, int64_t(column_tiles) * kTileColumns, int64_t(blockIdx.y) * kTileRows,
                           int64_t(column_tile) * kTileColumns);
  dequantize_tile<id>(tiles + (int64_t(blockIdx.y) * column_tiles + column_tile) * Tile<id>::kTileBytes, to);
}

}  // namespace

void dequantize_halves(const Matrix& matrix, int64_t first_row_tile, int row_tiles, HalfOrder order, uint16_t* out,
                       Stream stream) {
  with_format(matrix.format, [&]<TypeId id>() {
    const int64_t column_tiles = matrix.column_tiles();
    const auto kernel =
        order == HalfOrder::kRows ? dequantize_tiles<id, HalfOrder::kRows> : dequantize_tiles<id, HalfOrder::kPanels>;
    launch(
        "dequantize_tiles", kernel,
        {{unsigned((column_tiles + kWarps - 1) / kWarps), unsigned(row_tiles)}, {unsigned(kWarps * kWarp)}, 0, stream},
        matrix.tiles + first_row_tile * column_tiles * Tile<id>::kTileBytes, int(column_tiles), out);
  });
}

}  // namespace gristmill::cuda
