// Keys and values in host memory: address space for the whole context, pages taken as positions fill.
#pragma once

#include <cstddef>

#include "backend.h"
#include "cpu/kv_layout.h"

namespace gristmill::cpu {

class CpuKvCache final : public KvCache {
 public:
  // Throws ArgumentError where Q8_0 does not divide a head, DeviceError where address space is refused.
  explicit CpuKvCache(const KvShape& shape);
  ~CpuKvCache() override;
  CpuKvCache(const CpuKvCache&) = delete;
  CpuKvCache& operator=(const CpuKvCache&) = delete;

  void truncate(int64_t n) override;

  // Of chunk 0; those of chunk i are i * chunk_bytes() further.
  std::byte* k(int layer, int head) const { return memory_ + region(layer, head); }
  std::byte* v(int layer, int head) const { return memory_ + region(layer, head) + k_bytes_; }
  int64_t chunk_bytes() const { return region(shape().n_layer, 0); }
  // Writes one position's key and value of one head.
  void store(int layer, int head, int64_t position, const float* k, const float* v) const;

 private:
  // madvise() for whole pages of [begin, end), bytes of the cache.
  void advise(int64_t begin, int64_t end, int advice) const;
  int64_t region(int layer, int head) const {
    return (int64_t(layer) * shape().n_head_kv + head) * (k_bytes_ + v_bytes_);
  }
  std::byte* memory_ = nullptr;
  int64_t k_bytes_ = 0, v_bytes_ = 0;  // of one chunk, layer and head
  int64_t total_bytes_ = 0;
};

}  // namespace gristmill::cpu
