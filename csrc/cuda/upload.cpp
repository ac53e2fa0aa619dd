#include "cuda/upload.h"

#include <algorithm>
#include <cstring>

#include "cuda/matrix.h"

namespace gristmill::cuda {
namespace {

constexpr int64_t kPieceBytes = 32 << 20;
// One thread copies out of the page cache at a fraction of what the bus takes.
constexpr int kMostReaders = 4;
constexpr size_t kPartBytes = 2 << 20;

}  // namespace

Uploader::Stage::Stage(size_t bytes)
    : host(make_pinned<std::byte>(bytes)), device(make_device<std::byte>(bytes)), free(make_event()) {}
Uploader::Stage::~Stage() { destroy_event(free); }

Uploader::Uploader(Stream stream) : stream_(stream), readers_(std::min(kMostReaders, default_thread_count())) {}

void Uploader::read(const std::byte* from, size_t bytes, std::byte* to) {
  const int parts = int((bytes + kPartBytes - 1) / kPartBytes);
  readers_.run(parts, [&](int i) {
    const size_t first = size_t(i) * kPartBytes;
    std::memcpy(to + first, from + first, std::min(kPartBytes, bytes - first));
  });
}

int64_t Uploader::device_bytes(int64_t n_cols) {
  const int64_t longest = kTileRows * n_cols * int64_t(sizeof(float));  // whole row tiles, however long
  return 2 * allocated_bytes(std::max(kPieceBytes, longest));
}

DevicePointer<std::byte> Uploader::upload(const Weight& w) {
  auto tiles = make_device<std::byte>(size_t(matrix_bytes(w.format->id, w.n_rows, w.n_cols)));
  const Matrix matrix{w.format->id, tiles.get(), w.n_rows, w.n_cols};
  // Whole row tiles, at least one however long its rows are.
  const int64_t rows_at_once = std::max<int64_t>(1, kPieceBytes / (w.row_bytes() * kTileRows)) * kTileRows;
  const size_t bytes = size_t(std::min(rows_at_once, w.n_rows) * w.row_bytes());
  if (bytes > stage_bytes_) {
    synchronize(stream_);
    // A full piece, unless this is the largest matrix there is.
    const size_t larger = std::max(bytes, std::min(size_t(kPieceBytes), size_t(w.n_rows * w.row_bytes())));
    stage_bytes_ = 0;  // where there is no memory for them there are none
    for (auto& stage : stages_) {
      stage.reset();
      stage = std::make_unique<Stage>(larger);
    }
    stage_bytes_ = larger;
  }
  for (int64_t row = 0; row < w.n_rows; row += rows_at_once, next_ ^= 1) {
    Stage& stage = *stages_[next_];
    const int64_t n = std::min(rows_at_once, w.n_rows - row);
    const size_t n_bytes = size_t(n * w.row_bytes());
    if (stage.used) synchronize(stage.free);
    read(w.data + row * w.row_bytes(), n_bytes, stage.host.get());
    copy_to_device(stage.device.get(), stage.host.get(), n_bytes, stream_);
    repack(matrix, row / kTileRows, stage.device.get(), n, stream_);
    record(stage.free, stream_);
    stage.used = true;
  }
  return tiles;
}

}  // namespace gristmill::cuda
