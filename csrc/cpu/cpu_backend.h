// The seam on a CPU: cuts every operation into tasks for the thread pool and calls the chosen set's kernels.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "backend.h"
#include "core/aligned_buffer.h"
#include "core/thread_pool.h"
#include "cpu/cpu_kv_cache.h"
#include "cpu/kernels.h"

namespace gristmill::cpu {

class CpuBackend final : public Backend {
 public:
  CpuBackend(const Kernels& kernels, int n_threads, bool precise = false)
      : kernels_(kernels), precise_(precise), pool_(n_threads) {}

  int n_threads() const override { return pool_.n_threads(); }

  std::shared_ptr<float[]> allocate(size_t n) override;
  std::shared_ptr<const float[]> upload_vector(const Weight& w) override;
  std::unique_ptr<KvCache> make_cache(const KvShape& shape) override;
  void embed(const Weight& table, std::span<const int32_t> ids, float* out) override;
  void rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) override;
  void matmul(std::span<const Product> products, const float* x, int n, Phase phase) override;
  void rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) override;
  void store_kv(const Batch& batch, int layer, const float* k, const float* v) override;
  void attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) override;
  void swiglu(float* gate, const float* up, size_t n_elements) override;
  void add(float* x, const float* y, size_t n_elements) override;
  void upload(const float* host, size_t n, float* to) override;
  void download(const float* from, size_t n, float* host) override;
  bool writes_host() const override { return true; }
  void gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) override;

 private:
  // Elements below which handing work to another thread costs more than it saves.
  static constexpr int64_t kElementGrain = 16384;
  struct Piece;  // of attention: attention_tasks.cpp
  std::vector<size_t> cut_runs(std::span<Piece> pieces) const;
  void run_piece(const Piece& piece, int layer, const float* q, int n_head, float scale, float* out);

  // f(begin, end) over [0, n) in ranges of at least `grain`, in parallel.
  template <class F>
  void for_ranges(int64_t n, int64_t grain, const F& f) {
    const int64_t pieces = std::clamp<int64_t>(n / std::max<int64_t>(grain, 1), 1, 4 * pool_.n_threads());
    pool_.run(int(pieces), [&](int i) { f(n * i / pieces, n * (i + 1) / pieces); });
  }

  // Quantizes x [n, n_cols] in parts of rows_at_once, each of which lies as a batch of its own.
  const std::byte* quantize(const Activations& a, const float* x, int n, int64_t n_cols, int rows_at_once,
                            AlignedBuffer<std::byte>& to);

  // Rows [begin, end) of one of several products' weights: a task.
  struct Rows {
    size_t product;
    int64_t begin, end;
  };
  std::vector<Rows> cut(std::span<const Product> products, bool decode) const;

  const Kernels& kernels_;
  const bool precise_;
  ThreadPool pool_;
  std::vector<AlignedBuffer<std::byte>> quantized_;  // one for each way that products of one x want it
  AlignedBuffer<float> partials_;
};

}  // namespace gristmill::cpu
