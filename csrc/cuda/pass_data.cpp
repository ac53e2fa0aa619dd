#include "cuda/pass_data.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "cuda/cuda_kv_cache.h"

namespace gristmill::cuda {
namespace {

constexpr size_t kAlign = 256;
constexpr size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Addresses of caches, then four arrays of 32 bits for each row.
size_t arrays_bytes(size_t n) { return aligned(n * sizeof(std::byte*)) + 4 * aligned(n * sizeof(int32_t)); }

}  // namespace

int64_t PassData::bytes(int n, int64_t width) {
  return int64_t(arrays_bytes(size_t(n)) + aligned(size_t(n) * size_t(width) * sizeof(float)));
}

void PassData::wait() {
  if (in_flight_) synchronize(sent_);
  in_flight_ = false;
}

void PassData::reserve(size_t size) {
  if (size <= capacity_) return;
  synchronize(stream_);  // kernels of the pass before read the old memory
  in_flight_ = false;
  PinnedPointer<std::byte> larger = make_pinned<std::byte>(size);
  if (used_ > 0) std::memcpy(larger.get(), host_.get(), used_);
  host_ = std::move(larger);
  device_.reset();
  capacity_ = 0;
  device_ = make_device<std::byte>(size);
  capacity_ = size;
}

void PassData::begin(const Batch& batch) {
  wait();
  is_sent_ = false;
  table_of_ = nullptr;
  n_ = batch.n_rows();
  n_output_rows_ = int(batch.output_rows.size());
  const size_t n = size_t(n_), step = aligned(n * sizeof(int32_t));
  used_ = 0;
  reserve(arrays_bytes(n));
  used_ = arrays_bytes(n);
  ids_at_ = caches_at_ + aligned(n * sizeof(std::byte*));
  positions_at_ = ids_at_ + step;
  sequences_at_ = positions_at_ + step;
  rows_at_ = sequences_at_ + step;
  table_at_ = rows_at_ + step;
  std::ranges::copy(batch.tokens, host<int32_t>(ids_at_));
  std::ranges::transform(batch.positions, host<int32_t>(positions_at_), [](int64_t p) { return int32_t(p); });
  std::ranges::copy(batch.output_rows, host<int32_t>(rows_at_));
  for (size_t i = 0; i < batch.spans.size(); ++i) {
    const Span& span = batch.spans[i];
    std::fill_n(host<int32_t>(sequences_at_) + span.first_row, span.n_rows, int32_t(i));
    host<std::byte*>(caches_at_)[i] = static_cast<const CudaKvCache&>(*span.cache).data();
  }
}

void PassData::set_table(const float* from, size_t n, const float* to) {
  wait();
  is_sent_ = false;
  reserve(table_at_ + aligned(n * sizeof(float)));
  std::copy_n(from, n, host<float>(table_at_));
  used_ = table_at_ + n * sizeof(float);
  table_of_ = to;
}

void PassData::send() {
  if (is_sent_) return;
  copy_to_device(device_.get(), host_.get(), used_, stream_);
  try {
    record(sent_, stream_);
  } catch (...) {
    synchronize(stream_);  // what is here may be overwritten by the next pass
    throw;
  }
  in_flight_ = is_sent_ = true;
}

DeviceBatch PassData::batch() const {
  return {n_, at<int32_t>(positions_at_), at<int32_t>(sequences_at_), at<std::byte*>(caches_at_)};
}

const int32_t* PassData::ids(std::span<const int32_t> wanted) const {
  const bool same = wanted.size() == size_t(n_) && std::equal(wanted.begin(), wanted.end(), host<int32_t>(ids_at_));
  return same ? at<int32_t>(ids_at_) : nullptr;
}

const int32_t* PassData::rows(std::span<const int> wanted) const {
  const int32_t* const begin = host<int32_t>(rows_at_);
  const int32_t* const end = begin + n_output_rows_;
  const int32_t* const found = std::search(begin, end, wanted.begin(), wanted.end());
  return found == end ? nullptr : at<int32_t>(rows_at_) + (found - begin);
}

}  // namespace gristmill::cuda
