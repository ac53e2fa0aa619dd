#include "cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace gristmill::cpu {
namespace {

// Elements below which handing work to another thread costs more than it saves.
constexpr int64_t kElementGrain = 16384;

// Rows of x that share a pass over the weights in prefill: their sums fit a core's own cache.
constexpr int kPrefillRows = 512;

// Tasks a thread: in decoding few, for they read long streams; in prefill enough that the last is not waited for.
constexpr int kDecodeTasks = 2, kPrefillTasks = 4;

// Bytes of weights of a decode task. At most: kernels read a task as sixteen streams, which are slower the further
// apart they are, and threads end closer together. At least: shorter streams end before the hardware runs ahead of
// them.
constexpr int64_t kMostTaskBytes = 2 << 20, kLeastTaskBytes = 128 << 10;

// Rows of weights of one decode task, whole groups of 16.
int64_t decode_task_rows(const Weight& w, int n_threads) {
  const int64_t row_bytes = std::max<int64_t>(w.row_bytes(), 1);
  const int64_t threads_want = int64_t(kDecodeTasks) * n_threads, size_wants = w.n_rows * row_bytes / kMostTaskBytes;
  // As many for each thread, where there are few.
  const int64_t tasks = (std::max(threads_want, size_wants) + n_threads - 1) / n_threads * n_threads;
  return (std::max(kLeastTaskBytes / row_bytes, (w.n_rows + tasks - 1) / tasks) + 15) / 16 * 16;
}

}  // namespace

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

const std::byte* CpuBackend::quantize(const Activations& a, const float* x, int n, int64_t n_cols, int rows_at_once,
                                      AlignedBuffer<std::byte>& to) {
  const int64_t part_bytes = a.bytes(n_cols, rows_at_once);
  const int parts = (n + rows_at_once - 1) / rows_at_once;
  std::byte* out = to.grow(size_t(parts) * size_t(part_bytes));
  for (int part = 0; part < parts; ++part) {
    const int first = part * rows_at_once, rows = std::min(rows_at_once, n - first);
    for_ranges((rows + a.tokens - 1) / a.tokens, kElementGrain / (a.tokens * n_cols), [&](int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile)
        a.quantize(x + first * n_cols, n_cols, rows, tile, out + part * part_bytes);
    });
  }
  return out;
}

void CpuBackend::matmul(std::span<const Product> products, const float* x, int n, Phase phase) {
  const int64_t n_cols = products.front().weight->n_cols;
  const Pass pass = pass_for(phase, precise_);
  const bool decode = phase != Phase::kPrefill;
  if (n == 0) return;
  const int rows_at_once = std::min(n, decode ? kDecodeRows : kPrefillRows);
  // What each product reads. Formats may want x in different ways, of which each is made once.
  std::vector<const std::byte*> inputs;
  size_t n_ways = 0;
  const auto activations = [&](size_t i) -> const Activations& {
    return kernels_.activations[int(pass)][format_index(products[i].weight->format)];
  };
  for (size_t i = 0; i < products.size(); ++i) {
    const Activations& a = activations(i);
    size_t same = 0;
    while (same < i && activations(same).quantize != a.quantize) ++same;
    if (same < i) {
      inputs.push_back(inputs[same]);
    } else if (!a.quantize) {
      inputs.push_back(reinterpret_cast<const std::byte*>(x));
    } else {
      if (n_ways == quantized_.size()) quantized_.emplace_back();
      inputs.push_back(quantize(a, x, n, n_cols, rows_at_once, quantized_[n_ways++]));
    }
  }
  const int64_t least_tasks = (decode ? kDecodeTasks : kPrefillTasks) * pool_.n_threads();
  int64_t all_rows = 0;
  for (const Product& p : products) all_rows += p.weight->n_rows;
  std::vector<MatmulTask> tasks;
  for (size_t i = 0; i < products.size(); ++i) {
    const Product& p = products[i];
    const Activations& a = activations(i);
    const int64_t m = p.weight->n_rows;
    int64_t step = decode ? decode_task_rows(*p.weight, pool_.n_threads()) : kernels_.prefill_rows;
    const int64_t least = decode ? 16 : kernels_.panel_rows;
    // Small matrices: smaller tasks, so that every thread has some and the last one is not waited for.
    while (step > least && (all_rows + step - 1) / step < least_tasks) step /= 2;
    step = std::max(least, step / least * least);
    for (int first = 0; first < n; first += rows_at_once) {
      const int count = std::min(rows_at_once, n - first);
      const std::byte* input = inputs[i] + first / rows_at_once * a.bytes(n_cols, rows_at_once);
      for (int64_t r = 0; r < m; r += step)
        tasks.push_back({p.weight, r, std::min(m, r + step), input, a.bytes(n_cols, 1), count, p.bias, p.y + first * m,
                         kernels_.decode_ahead});
    }
  }
  pool_.run(int(tasks.size()), [&](int i) {
    const MatmulTask& task = tasks[size_t(i)];
    kernels_.matmul[int(pass)][format_index(task.w->format)](task);
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
