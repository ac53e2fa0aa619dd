#include "cuda/upload.h"

#include <algorithm>
#include <cstring>

#include "cuda/matrix.h"

namespace gristmill::cuda {
namespace {

constexpr int64_t kPieceBytes = 32 << 20;

// One half of the double buffer: filled by the host, copied and repacked by the device, then free again.
struct Stage {
  PinnedPointer<std::byte> host;
  DevicePointer<std::byte> device;
  Event free = nullptr;

  explicit Stage(size_t bytes)
      : host(make_pinned<std::byte>(bytes)), device(make_device<std::byte>(bytes)), free(make_event()) {}
  ~Stage() { destroy_event(free); }
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;
};

}  // namespace

DevicePointer<std::byte> upload_tiles(const Weight& w, Stream stream) {
  auto tiles = make_device<std::byte>(size_t(matrix_bytes(w.format->id, w.n_rows, w.n_cols)));
  const Matrix matrix{w.format->id, tiles.get(), w.n_rows, w.n_cols};
  const int64_t rows_at_once =
      std::min(w.n_rows, std::max<int64_t>(1, kPieceBytes / (w.row_bytes() * kTileRows)) * kTileRows);
  const int64_t bytes = rows_at_once * w.row_bytes();
  Stage stages[2] = {Stage(size_t(bytes)), Stage(size_t(bytes))};
  int which = 0;
  for (int64_t row = 0; row < w.n_rows; row += rows_at_once, which ^= 1) {
    Stage& stage = stages[which];
    const int64_t n = std::min(rows_at_once, w.n_rows - row);
    if (row >= 2 * rows_at_once) synchronize(stage.free);
    std::memcpy(stage.host.get(), w.data + row * w.row_bytes(), size_t(n * w.row_bytes()));
    copy_to_device(stage.device.get(), stage.host.get(), size_t(n * w.row_bytes()), stream);
    repack(matrix, row / kTileRows, stage.device.get(), n, stream);
    record(stage.free, stream);
  }
  synchronize(stream);
  return tiles;
}

}  // namespace gristmill::cuda
