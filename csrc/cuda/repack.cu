// From the file's blocks to tiles, once at load. A thread makes four bytes of a tile at a time: it looks where their
// codes lie in the file.
#include <algorithm>

#include "core/error.h"
#include "cuda/device/launch.h"
#include "cuda/matrix.h"
#include "cuda/tile_layout.h"

namespace gristmill::cuda {
namespace {

constexpr int kThreads = 256;

// The rows of a piece of the matrix, as in the file.
struct Rows {
  const uint8_t* data;
  int64_t n_rows, row_bytes;
};

// Byte `byte` of the block that holds column k of a row; zeros beyond the edges.
template <class T>
DEVICE uint8_t block_byte(const Rows& rows, int64_t row, int64_t k, int byte) {
  const int64_t at = k / T::kBlock * T::kBlockBytes;
  if (row >= rows.n_rows || at >= rows.row_bytes) return 0;
  return rows.data[row * rows.row_bytes + at + byte];
}

// One byte of a plane whose codes have kBits bits each.
template <class T, int kBits>
DEVICE uint8_t make_plane_byte(const Rows& rows, int64_t row0, int64_t k0, int byte) {
  constexpr int kGroups = 8 / kBits;
  const PlaneWeight w = plane_weight(kGroups, byte);
  uint32_t value = 0;
  for (int slot = 0; slot < kGroups; ++slot) {
    const int k = w.k + 32 * slot, in_block = k % T::kBlock;
    const Place8 place = kBits == 8   ? T::code8(in_block)
                         : kBits == 4 ? T::code4(in_block)
                         : kBits == 2 ? T::code2(in_block)
                                      : T::code1(in_block);
    const uint32_t code = block_byte<T>(rows, row0 + w.row, k0 + k, place.byte) >> place.shift;
    value |= (code & ((1u << kBits) - 1)) << kBits * slot;
  }
  return uint8_t(value);
}

template <class T>
DEVICE uint8_t make_byte(const Rows& rows, int64_t row0, int64_t k0, int byte) {
  if constexpr (T::kId == TypeId::F32) {
    return block_byte<T>(rows, row0 + byte / 1024, k0 + byte % 1024 / 4, byte % 4);
  } else if constexpr (!T::kQuantized) {
    const PlaneWeight w = half_weight(byte);
    return block_byte<T>(rows, row0 + w.row, k0 + w.k, byte % 2);
  } else {
    if constexpr (T::kCode8)
      if (byte < T::kCode4At) return make_plane_byte<T, 8>(rows, row0, k0, byte);
    if constexpr (T::kCode4)
      if (byte < T::kCode2At) return make_plane_byte<T, 4>(rows, row0, k0, byte - T::kCode4At);
    if constexpr (T::kCode2)
      if (byte < T::kCode1At) return make_plane_byte<T, 2>(rows, row0, k0, byte - T::kCode2At);
    if constexpr (T::kCode1)
      if (byte < T::kSidesAt) return make_plane_byte<T, 1>(rows, row0, k0, byte - T::kCode1At);
    const int j = T::kSides > 1 && byte >= T::side_at(1) ? 1 : 0;
    const int at = byte - T::side_at(j), row = at / T::row_bytes(j), in_row = at % T::row_bytes(j);
    const Side side = T::side(j);
    return block_byte<T>(rows, row0 + row, k0 + in_row / side.bytes * T::kBlock, side.offset + in_row % side.bytes);
  }
}

// Block (x, y): tile x of the row, row tile y of the piece.
template <TypeId id>
KERNEL(kThreads, 4)
repack_tiles(Rows rows, uint8_t* tiles) {
  using T = Tile<id>;
  const int64_t row0 = int64_t(blockIdx.y) * kTileRows, k0 = int64_t(blockIdx.x) * kTileColumns;
  uint8_t* tile = tiles + (int64_t(blockIdx.y) * gridDim.x + blockIdx.x) * T::kTileBytes;
  for (int word = int(threadIdx.x); word < T::kTileBytes / 4; word += kThreads) {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value |= uint32_t(make_byte<T>(rows, row0, k0, 4 * word + i)) << 8 * i;
    reinterpret_cast<uint32_t*>(tile)[word] = value;
  }
}

}  // namespace

int64_t tile_bytes(TypeId format) {
  int64_t bytes = 0;
  with_format(format, [&]<TypeId id>() { bytes = Tile<id>::kTileBytes; });
  return bytes;
}

int64_t matrix_bytes(TypeId format, int64_t n_rows, int64_t n_cols) {
  const Matrix matrix{format, nullptr, n_rows, n_cols};
  return matrix.row_tiles() * matrix.column_tiles() * tile_bytes(format);
}

void repack(const Matrix& matrix, int64_t first_tile, const std::byte* rows, int64_t n_rows, Stream stream) {
  with_format(matrix.format, [&]<TypeId id>() {
    using T = Tile<id>;
    constexpr int64_t kMostRowTiles = 32768;  // of a launch: gridDim.y
    const int64_t row_bytes = matrix.n_cols / T::kBlock * T::kBlockBytes;
    const int64_t tiles = matrix.column_tiles();
    auto* to = reinterpret_cast<uint8_t*>(const_cast<std::byte*>(matrix.tiles)) + first_tile * tiles * T::kTileBytes;
    const auto* from = reinterpret_cast<const uint8_t*>(rows);
    while (n_rows > 0) {
      const int64_t some = std::min(n_rows, kMostRowTiles * kTileRows);
      const unsigned row_tiles = unsigned((some + kTileRows - 1) / kTileRows);
      launch("repack_tiles", repack_tiles<id>, {{unsigned(tiles), row_tiles}, {kThreads}, 0, stream},
             Rows{from, some, row_bytes}, to);
      from += some * row_bytes;
      to += int64_t(row_tiles) * tiles * T::kTileBytes;
      n_rows -= some;
    }
  });
}

}  // namespace gristmill::cuda
