// A backend that looks at the inputs of every product on their way to another backend, and sums their squares: what an
// importance matrix is made of. A model is built over it only where that is wanted, so nothing else pays for it.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "backend.h"

namespace gristmill {

// Inputs that one matrix has seen.
struct InputSquares {
  std::vector<double> sums;  // [n_cols] of squares; float64, so that no number of tokens loses the small ones
  int64_t n_rows = 0;        // tokens
};

class ObservingBackend final : public Backend {
 public:
  explicit ObservingBackend(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}

  // By the weights' address in the file.
  const std::map<const std::byte*, InputSquares>& squares() const { return squares_; }

  int n_threads() const override { return inner_->n_threads(); }
  std::shared_ptr<float[]> allocate(size_t n) override { return inner_->allocate(n); }
  std::shared_ptr<const float[]> upload_vector(const Weight& w) override { return inner_->upload_vector(w); }
  Weight upload_matrix(const Weight& w) override { return inner_->upload_matrix(w); }
  std::unique_ptr<KvCache> make_cache(const KvShape& shape) override { return inner_->make_cache(shape); }
  void check_cache(const KvShape& shape) override { inner_->check_cache(shape); }
  void at_layer(int layer) override { inner_->at_layer(layer); }
  bool share_memory(int layer, int other) const override { return inner_->share_memory(layer, other); }
  void begin(const Batch& batch) override { inner_->begin(batch); }
  void end() override { inner_->end(); }
  void catch_up() override { inner_->catch_up(); }
  void embed(const Weight& table, std::span<const int32_t> ids, float* out) override { inner_->embed(table, ids, out); }
  void rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) override {
    inner_->rms_norm(x, weight, eps, n, n_cols, out);
  }
  void matmul(std::span<const Product> products, const float* x, int n, Phase phase) override;
  void rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) override {
    inner_->rope(x, n, n_heads, head_dim, dims, cos_sin, style);
  }
  void store_kv(const Batch& batch, int layer, const float* k, const float* v) override {
    inner_->store_kv(batch, layer, k, v);
  }
  void attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) override {
    inner_->attention(batch, layer, q, n_head, scale, out);
  }
  void swiglu(float* gate, const float* up, size_t n_elements) override { inner_->swiglu(gate, up, n_elements); }
  void add(float* x, const float* y, size_t n_elements) override { inner_->add(x, y, n_elements); }
  void upload(const float* host, size_t n, float* to) override { inner_->upload(host, n, to); }
  void upload_table(const float* host, size_t n, float* to) override { inner_->upload_table(host, n, to); }
  void download(const float* from, size_t n, float* host) override { inner_->download(from, n, host); }
  bool writes_host() const override { return inner_->writes_host(); }
  void gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) override {
    inner_->gather_rows(x, rows, n_cols, out);
  }

 private:
  std::unique_ptr<Backend> inner_;
  std::map<const std::byte*, InputSquares> squares_;
  std::vector<float> host_;  // inputs of a device that does not share the host's memory
  std::vector<double> sums_;
};

}  // namespace gristmill
