// Tiles of every format in the registry: random bytes go to tiles and come back byte for byte, edges are zeros, nothing
// else is in a tile. The way back reads plane_byte and half_byte, the kernel their inverses.
#include <random>
#include <string>
#include <vector>

#include "blocks.h"
#include "check.h"
#include "cuda/tile_layout.h"
#include "device_under_test.h"
#include "quantize.h"

namespace gristmill::cuda::test {
namespace {

template <class T>
void unpack_weight(const uint8_t* tile, int row, int k, uint8_t* block) {
  const int i = k % T::kBlock;
  const auto take = [&](int bits, int at, Place8 place) {
    const PlaneByte from = plane_byte(8 / bits, row, k);
    const int code = tile[at + from.byte] >> bits * from.slot & ((1 << bits) - 1);
    block[place.byte] = uint8_t(block[place.byte] | code << place.shift);
  };
  if (T::kCode8) take(8, T::kCode8At, T::code8(i));
  if (T::kCode4) take(4, T::kCode4At, T::code4(i));
  if (T::kCode2) take(2, T::kCode2At, T::code2(i));
  if (T::kCode1) take(1, T::kCode1At, T::code1(i));
  if (!T::kQuantized) {
    const int from = T::kId == TypeId::F32 ? (row * kTileColumns + k) * 4 : half_byte(row, k);
    std::memcpy(block, tile + from, T::kBlockBytes);
  }
}

// What the file would hold for the padded matrix, [16 row_tiles][padded].
template <class T>
std::vector<uint8_t> unpack(const Matrix& m) {
  const int64_t tiles = m.column_tiles(), blocks = tiles * T::kBlocks;
  std::vector<uint8_t> bytes(size_t(m.row_tiles() * kTileRows * blocks * T::kBlockBytes));
  const std::vector<std::byte> all = to_host(m.tiles, size_t(m.row_tiles() * tiles * T::kTileBytes));
  for (int64_t r = 0; r < m.row_tiles() * kTileRows; ++r)
    for (int64_t c = 0; c < tiles; ++c) {
      const auto* tile = reinterpret_cast<const uint8_t*>(all.data()) + (r / kTileRows * tiles + c) * T::kTileBytes;
      const int row = int(r % kTileRows);
      uint8_t* block = bytes.data() + (r * blocks + c * T::kBlocks) * T::kBlockBytes;
      for (int k = 0; k < kTileColumns; ++k) unpack_weight<T>(tile, row, k, block + k / T::kBlock * T::kBlockBytes);
      for (int j = 0; j < T::kSides; ++j)
        for (int b = 0; b < T::kBlocks; ++b)
          std::memcpy(block + b * T::kBlockBytes + T::side(j).offset,
                      tile + T::side_at(j) + row * T::row_bytes(j) + b * T::side(j).bytes, size_t(T::side(j).bytes));
    }
  return bytes;
}

template <TypeId id>
void check_format(const formats::FormatInfo& format, int64_t n_rows, int64_t n_cols, int64_t piece) {
  using T = Tile<id>;
  const std::string name(format.name);
  CHECK(T::kBlock == format.block_size && T::kBlockBytes == format.type_size, "%s", name.c_str());
  CHECK(T::kTileBytes == kTileRows * kTileColumns / format.block_size * format.type_size && T::kTileBytes % 16 == 0,
        "%s: a tile of %d bytes", name.c_str(), T::kTileBytes);
  HostMatrix host{&format, n_rows, n_cols, {}, {}};
  host.bytes.resize(size_t(n_rows * host.row_bytes()));
  std::mt19937 random{uint32_t(id) + 1};
  for (std::byte& b : host.bytes) b = std::byte(random());
  const DeviceMatrix device(host, piece);
  const std::vector<uint8_t> back = unpack<T>(device.matrix);
  const int64_t padded_bytes = padded_columns(n_cols) / T::kBlock * T::kBlockBytes;
  for (size_t i = 0; i < back.size(); ++i) {
    const int64_t r = int64_t(i) / padded_bytes, at = int64_t(i) % padded_bytes;
    const bool inside = r < n_rows && at < host.row_bytes();
    const uint8_t expected = inside ? uint8_t(host.bytes[size_t(r * host.row_bytes() + at)]) : uint8_t(0);
    CHECK(back[i] == expected, "%s %d x %d: row %d, byte %d is %d, not %d", name.c_str(), int(n_rows), int(n_cols),
          int(r), int(at), back[i], expected);
  }
}

// Rows of the matrix, bit for bit as the format's own header gives them (-0 may become +0).
void check_rows(const formats::FormatInfo& format, int64_t n_cols) {
  const HostMatrix host = make_matrix(format, 37, n_cols, 9);
  const DeviceMatrix device(host);
  const std::vector<int32_t> rows = {36, 0, 17, 17, 8};
  const auto ids = to_device(rows);
  const auto out = make_device<float>(rows.size() * size_t(n_cols));
  dequantize_rows(device.matrix, ids.get(), int(rows.size()), out.get(), nullptr);
  const std::vector<float> values = to_host(out.get(), rows.size() * size_t(n_cols));
  for (size_t i = 0; i < rows.size(); ++i)
    for (int64_t k = 0; k < n_cols; ++k) {
      const float expected = host.values[size_t(rows[i] * n_cols + k)], got = values[i * size_t(n_cols) + size_t(k)];
      CHECK(got == expected, "%s: row %d, column %d is %a, not %a", std::string(format.name).c_str(), rows[i], int(k),
            double(got), double(expected));
    }
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  for (const formats::FormatInfo* f = formats::begin_formats(); f != formats::end_formats(); ++f) {
    const int64_t narrow = f->block_size == 256 ? 512 : 320;
    const bool found = cuda::with_format(f->id, [&]<formats::TypeId id>() {
      cuda::test::check_format<id>(*f, 37, narrow, 0);
      cuda::test::check_format<id>(*f, 48, 256, 16);
    });
    cuda::test::check_rows(*f, narrow);
    CHECK(found && cuda::tile_bytes(f->id) > 0, "%s has no tiles", std::string(f->name).c_str());
  }
  return test::failures("test_repack");
}
