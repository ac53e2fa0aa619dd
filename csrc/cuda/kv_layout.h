// How one sequence's keys and values lie in device memory: for each layer and KV head a plane of keys and a plane of
// values, [position][head_dim]; Q8_0 has int8 planes and beside each one its scales, f16 [position][head_dim / 32].
#pragma once

#include <cstdint>

#include "backend.h"

namespace gristmill::cuda {

struct KvLayout {
  KvType type_k = KvType::F16, type_v = KvType::F16;
  int n_layer = 0, n_head_kv = 0, head_dim_k = 0, head_dim_v = 0;
  int64_t n_ctx = 0;  // positions there is room for

  // Bytes of one position's values and scales in one plane; planes start at multiples of 256.
  static constexpr int64_t value_bytes(KvType type, int head_dim) {
    return int64_t(head_dim) * (type == KvType::F32 ? 4 : type == KvType::F16 ? 2 : 1);
  }
  static constexpr int64_t scale_bytes(KvType type, int head_dim) {
    return type == KvType::Q8_0 ? int64_t(head_dim) / 32 * 2 : 0;
  }
  static constexpr int64_t plane(int64_t bytes) { return (bytes + 255) / 256 * 256; }

  constexpr int64_t k_values() const { return plane(n_ctx * value_bytes(type_k, head_dim_k)); }
  constexpr int64_t k_scales() const { return plane(n_ctx * scale_bytes(type_k, head_dim_k)); }
  constexpr int64_t v_values() const { return plane(n_ctx * value_bytes(type_v, head_dim_v)); }
  constexpr int64_t v_scales() const { return plane(n_ctx * scale_bytes(type_v, head_dim_v)); }
  constexpr int64_t head_bytes() const { return k_values() + k_scales() + v_values() + v_scales(); }
  constexpr int64_t total_bytes() const { return head_bytes() * n_head_kv * n_layer; }
  // Of one layer and head, from the start of the cache: keys, then their scales, values, their scales.
  constexpr int64_t head_offset(int layer, int head) const {
    return (int64_t(layer) * n_head_kv + head) * head_bytes();
  }
};

// What the rows of a batch are, on the device: nothing of it changes a launch, so a captured graph stays valid.
struct DeviceBatch {
  int n = 0;                           // rows
  const int32_t* positions = nullptr;  // [n]
  const int32_t* sequences = nullptr;  // [n], which cache
  std::byte* const* caches = nullptr;  // [number of sequences]
};

}  // namespace gristmill::cuda
