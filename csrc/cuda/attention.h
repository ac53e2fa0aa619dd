// Causal attention over the caches of csrc/cuda/kv_layout.h. q is [n][n_head * head_dim_k], out [n][n_head *
// head_dim_v], float32 on the device; head h reads KV head h / (n_head / n_head_kv).
#pragma once

#include <cstdint>

#include "cuda/activations.h"
#include "cuda/kv_layout.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

// Whether the fast kernels take these caches; the plain one takes all.
constexpr bool has_fast_attention(const KvLayout& l) {
  return l.type_k == l.type_v && l.type_k != KvType::F32 && l.head_dim_k == l.head_dim_v &&
         (l.head_dim_k == 64 || l.head_dim_k == 128);
}

// Work space of decode_attention for up to n rows, in bytes; depends on the device, not on positions.
int64_t decode_attention_workspace(const KvLayout& layout, int n_head, int n, const DeviceInfo& device);

// Row t, at batch.positions[t], attends to positions 0 to positions[t] of its own cache. The number of splits and the
// order of sums depend on a row's own length only, never on n: a sequence gets the same bits alone and in company.
// counters: unsigned[n * n_head_kv] that are 0 before and after.
// quantized (where planes is given): the result also as the product that follows reads it.
void decode_attention(const DeviceBatch& batch, const KvLayout& layout, int layer, const float* q, int n_head,
                      float scale, float* out, const QuantizedRows& quantized, void* workspace, unsigned* counters,
                      const DeviceInfo& device, Stream stream);
// Whether the shapes allow it.
bool decode_attention_quantizes(const KvLayout& layout, int n_head, const DeviceInfo& device);

// n rows of one sequence, q and out pointing to the first, at positions n_past, n_past + 1, ... (already stored).
void prefill_attention(const std::byte* cache, const KvLayout& layout, int layer, const float* q, int n_head, int n,
                       int64_t n_past, float scale, float* out, Stream stream);

}  // namespace gristmill::cuda
