// What the host tells a pass: tokens, positions, whose they are, which rows are wanted, and the table of rotations. It
// lies together in pinned memory and goes to the device in one copy, to the same place for every pass of as many rows,
// so that a graph finds it there.
#pragma once

#include <cstdint>
#include <span>

#include "backend.h"
#include "cuda/kv_layout.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

class PassData {
 public:
  // Bytes for a pass of n rows with a table of `width` floats for each.
  static int64_t bytes(int n, int64_t width);

  explicit PassData(Stream stream) : stream_(stream), sent_(make_event()) {}
  ~PassData() { destroy_event(sent_); }
  PassData(const PassData&) = delete;
  PassData& operator=(const PassData&) = delete;

  // Takes what the batch says; waits until what the pass before left here has been copied.
  void begin(const Batch& batch);
  // The table of rotations that stands for `to`; moves everything.
  void set_table(const float* host, size_t n, const float* to);
  // Copies all of it, once a pass.
  void send();

  // On the device.
  DeviceBatch batch() const;
  const float* table(const float* to) const { return to == table_of_ ? at<float>(table_at_) : to; }
  // nullptr where these are not the batch's.
  const int32_t* ids(std::span<const int32_t> wanted) const;
  const int32_t* rows(std::span<const int> wanted) const;

 private:
  template <class T>
  T* host(size_t offset) const {
    return reinterpret_cast<T*>(host_.get() + offset);
  }
  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(device_.get() + offset);
  }
  void wait();  // until the host's memory is its own again
  void reserve(size_t size);

  Stream stream_;
  Event sent_;
  bool in_flight_ = false, is_sent_ = false;
  PinnedPointer<std::byte> host_;
  DevicePointer<std::byte> device_;
  size_t capacity_ = 0, used_ = 0;
  size_t caches_at_ = 0, ids_at_ = 0, positions_at_ = 0, sequences_at_ = 0, rows_at_ = 0, table_at_ = 0;
  int n_ = 0, n_output_rows_ = 0;
  const float* table_of_ = nullptr;
};

}  // namespace gristmill::cuda
