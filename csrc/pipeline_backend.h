// Several backends as one, each with a range of the model's layers, their weights and their part of the cache (layer
// split). A batch passes through the stages in order; whatever an operation reads is brought to the stage that it runs
// on, which at a border is the residual stream and nothing else.
#pragma once

#include <memory>
#include <vector>

#include "backend.h"

namespace gristmill {

class PipelineBackend final : public Backend {
 public:
  struct Stage {
    std::unique_ptr<Backend> backend;
    int first_layer;  // to the next stage's; the last one also has the output head, and may have nothing else
  };

  // Layers ascend from 0.
  explicit PipelineBackend(std::vector<Stage> stages);
  ~PipelineBackend() override;

  int n_threads() const override;

  std::shared_ptr<float[]> allocate(size_t n) override;
  std::shared_ptr<const float[]> upload_vector(const Weight& w) override { return here().upload_vector(w); }
  Weight upload_matrix(const Weight& w) override { return here().upload_matrix(w); }
  std::unique_ptr<KvCache> make_cache(const KvShape& shape) override;
  void check_cache(const KvShape& shape) override;
  void at_layer(int layer) override { now_ = stage_of(layer); }
  bool share_memory(int layer, int other) const override { return stage_of(layer) == stage_of(other); }
  void begin(const Batch& batch) override;
  void end() override;
  void catch_up() override { here().catch_up(); }  // the others have handed on what they made
  void embed(const Weight& table, std::span<const int32_t> ids, float* out) override;
  void rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) override;
  void matmul(std::span<const Product> products, const float* x, int n, Phase phase) override;
  void rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin, RopeStyle style) override;
  void store_kv(const Batch& batch, int layer, const float* k, const float* v) override;
  void attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) override;
  void swiglu(float* gate, const float* up, size_t n_elements) override;
  void add(float* x, const float* y, size_t n_elements) override;
  void upload(const float* host, size_t n, float* to) override;
  void upload_table(const float* host, size_t n, float* to) override;
  void download(const float* from, size_t n, float* host) override;
  // Not where the memory that allocate() gave is this class's own.
  bool writes_host() const override { return false; }
  bool finds_top_logits() const override { return stages_.back().backend->finds_top_logits(); }
  void top_logits(const float* logits, int n, int64_t row_length, const TopLogits& to) override {
    here().top_logits(read(logits), n, row_length, to);
  }
  void gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) override;

 private:
  struct Buffer;
  class Cache;

  size_t stage_of(int layer) const;
  KvShape part_of(const KvShape& shape, size_t stage) const;
  Backend& here() const { return *stages_[now_].backend; }
  int layer_here(int layer) const { return layer - stages_[now_].first_layer; }
  float* memory_at(Buffer& buffer, size_t stage);
  // The running stage's memory of a buffer: with what was written last, wherever that was; to be filled with n floats;
  // to be changed in place.
  const float* read(const float* x);
  float* write(float* x, size_t n);
  float* change(float* x);

  std::vector<Stage> stages_;
  size_t now_ = 0;
  std::vector<Batch> batches_;  // the running pass, with each stage's caches
  std::vector<Product> products_;
  std::vector<float> host_;  // on the way between two stages
};

}  // namespace gristmill
