#include "cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace gristmill::cpu {
std::byte* thread_scratch(size_t bytes) {
  thread_local AlignedBuffer<std::byte> scratch;
  return scratch.grow(bytes);
}

std::shared_ptr<float[]> CpuBackend::allocate(size_t n) {
  auto buffer = std::make_shared<AlignedBuffer<float>>(n);
  return std::shared_ptr<float[]>(buffer, buffer->get());
}

std::shared_ptr<const float[]> CpuBackend::upload_vector(const Weight& w) {
  if (!w) return nullptr;
  auto out = allocate(size_t(w.n_cols));
  w.format->to_float(w.data, out.get(), w.n_cols);
  return out;
}

std::unique_ptr<KvCache> CpuBackend::make_cache(const KvShape& shape) { return std::make_unique<CpuKvCache>(shape); }

void CpuBackend::embed(const Weight& table, std::span<const int32_t> ids, float* out) {
  pool_.run(int(ids.size()), [&](int t) {
    table.format->to_float(table.data + ids[size_t(t)] * table.row_bytes(), out + t * table.n_cols, table.n_cols);
  });
}

void CpuBackend::rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) {
  for_ranges(n, kElementGrain / n_cols, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) kernels_.rms_norm(x + t * n_cols, weight, eps, n_cols, out + t * n_cols);
  });
}

void CpuBackend::rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) {
  const int64_t width = int64_t(n_heads) * head_dim;
  for_ranges(n, kElementGrain / width, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int h = 0; h < n_heads; ++h)
        kernels_.rope(x + t * width + int64_t(h) * head_dim, dims, cos_sin + t * dims, style);
  });
}

void CpuBackend::store_kv(const Batch& batch, int layer, const float* k, const float* v) {
  const KvShape& s = batch.spans.front().cache->shape();
  const int64_t k_width = int64_t(s.n_head_kv) * s.head_dim_k, v_width = int64_t(s.n_head_kv) * s.head_dim_v;
  const auto store = [&](int head) {
    for (const Span& span : batch.spans) {
      const auto& cache = static_cast<const CpuKvCache&>(*span.cache);
      for (int64_t t = span.first_row; t < span.first_row + span.n_rows; ++t)
        cache.store(layer, head, cache.n_past() + t - span.first_row, k + t * k_width + int64_t(head) * s.head_dim_k,
                    v + t * v_width + int64_t(head) * s.head_dim_v);
    }
  };
  if (batch.n_rows() * k_width < kElementGrain) {
    for (int head = 0; head < s.n_head_kv; ++head) store(head);
  } else {
    pool_.run(s.n_head_kv, store);  // a head a task: no two threads write one cache line of K
  }
}

void CpuBackend::swiglu(float* gate, const float* up, size_t n) {
  for_ranges(int64_t(n), kElementGrain,
             [&](int64_t begin, int64_t end) { kernels_.swiglu(gate + begin, up + begin, end - begin); });
}

void CpuBackend::add(float* x, const float* y, size_t n) {
  for_ranges(int64_t(n), kElementGrain,
             [&](int64_t begin, int64_t end) { kernels_.add(x + begin, y + begin, end - begin); });
}

void CpuBackend::upload(const float* host, size_t n, float* to) { std::memcpy(to, host, n * sizeof(float)); }

void CpuBackend::download(const float* from, size_t n, float* host) {
  if (from != host) std::memcpy(host, from, n * sizeof(float));
}

void CpuBackend::gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) {
  for (size_t i = 0; i < rows.size(); ++i)
    std::memcpy(out + int64_t(i) * n_cols, x + rows[i] * n_cols, size_t(n_cols) * sizeof(float));
}

}  // namespace gristmill::cpu
