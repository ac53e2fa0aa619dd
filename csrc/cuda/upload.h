// From the mapped file to tiles on the device.
#pragma once

#include <cstddef>
#include <memory>

#include "backend.h"
#include "core/thread_pool.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

// A few threads read rows into one of two pinned buffers, so that reading the file, the copy over the bus and the
// repacking of a piece overlap those of its neighbours, also across matrices. The buffers live as long as this does:
// pinning memory takes its time.
class Uploader {
 public:
  explicit Uploader(Stream stream);

  // Device memory that the buffers take at most, for rows of up to n_cols weights.
  static int64_t device_bytes(int64_t n_cols);

  // The tiles of a matrix, complete once the stream is. The file's bytes are read before this returns.
  DevicePointer<std::byte> upload(const Weight& w);

 private:
  // Filled by the host, copied and repacked by the device, then free again.
  struct Stage {
    PinnedPointer<std::byte> host;
    DevicePointer<std::byte> device;
    Event free = nullptr;
    bool used = false;

    explicit Stage(size_t bytes);
    ~Stage();
    Stage(const Stage&) = delete;
    Stage& operator=(const Stage&) = delete;
  };

  void read(const std::byte* from, size_t bytes, std::byte* to);

  Stream stream_;
  ThreadPool readers_;
  std::unique_ptr<Stage> stages_[2];
  size_t stage_bytes_ = 0;
  int next_ = 0;
};

}  // namespace gristmill::cuda
