// Keys and values of one sequence on the device. Memory for the whole context is taken at once: a device has no pages
// to fill on demand, and a context that does not fit is better refused when it is asked for.
#pragma once

#include "backend.h"
#include "core/error.h"
#include "cuda/kv_layout.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

inline KvLayout layout_of(const KvShape& s) {
  for (const auto& [type, dim] : {std::pair{s.type_k, s.head_dim_k}, {s.type_v, s.head_dim_v}})
    if (type == KvType::Q8_0 && dim % 32 != 0)
      throw ArgumentError("[kv cache] q8_0, expected heads of a multiple of 32, got " + std::to_string(dim));
  return {s.type_k, s.type_v, s.n_layer, s.n_head_kv, s.head_dim_k, s.head_dim_v, s.n_ctx};
}

class CudaKvCache final : public KvCache {
 public:
  explicit CudaKvCache(const KvShape& shape)
      : KvCache(shape), layout_(layout_of(shape)), memory_(make_device<std::byte>(size_t(layout_.total_bytes()))) {}

  const KvLayout& layout() const { return layout_; }
  std::byte* data() const { return memory_.get(); }

 private:
  KvLayout layout_;
  DevicePointer<std::byte> memory_;
};

}  // namespace gristmill::cuda
