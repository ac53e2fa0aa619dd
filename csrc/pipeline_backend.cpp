#include "pipeline_backend.h"

#include <algorithm>
#include <cassert>

namespace gristmill {

// What allocate() gives out: its address stands for memory on every stage that has used it. There is one value, and it
// is the same in all places marked valid.
struct PipelineBackend::Buffer {
  size_t size = 0;                           // floats
  size_t n_valid = 0;                        // floats that were written last
  std::vector<std::shared_ptr<float[]>> at;  // by stage; nullptr before its first use
  std::vector<bool> valid;

  static Buffer& of(const float* x) { return *reinterpret_cast<Buffer*>(const_cast<float*>(x)); }
};

// A part for each stage, with the stage's layers only. The parts' n_past follows when they are used.
class PipelineBackend::Cache final : public KvCache {
 public:
  Cache(const KvShape& shape, std::vector<std::unique_ptr<KvCache>> parts) : KvCache(shape), parts_(std::move(parts)) {}

  KvCache* part(size_t stage) {
    KvCache* p = parts_[stage].get();
    p->advance(n_past() - p->n_past());
    return p;
  }
  void truncate(int64_t n) override {
    for (size_t i = 0; i < parts_.size(); ++i) part(i)->truncate(n);
    KvCache::truncate(n);
  }

 private:
  std::vector<std::unique_ptr<KvCache>> parts_;
};

PipelineBackend::PipelineBackend(std::vector<Stage> stages) : stages_(std::move(stages)), batches_(stages_.size()) {
  assert(!stages_.empty() && stages_.front().first_layer == 0);
}

PipelineBackend::~PipelineBackend() = default;

int PipelineBackend::n_threads() const {
  int n = 0;
  for (const Stage& stage : stages_) n = std::max(n, stage.backend->n_threads());
  return n;
}

size_t PipelineBackend::stage_of(int layer) const {
  size_t stage = stages_.size() - 1;
  while (stages_[stage].first_layer > layer) --stage;
  return stage;
}

// --- Memory

std::shared_ptr<float[]> PipelineBackend::allocate(size_t n) {
  auto buffer = std::make_shared<Buffer>();
  buffer->size = n;
  buffer->at.resize(stages_.size());
  buffer->valid.assign(stages_.size(), false);
  return std::shared_ptr<float[]>(buffer, reinterpret_cast<float*>(buffer.get()));
}

float* PipelineBackend::memory_at(Buffer& buffer, size_t stage) {
  if (!buffer.at[stage]) buffer.at[stage] = stages_[stage].backend->allocate(buffer.size);
  return buffer.at[stage].get();
}

const float* PipelineBackend::read(const float* x) {
  Buffer& buffer = Buffer::of(x);
  float* const here = memory_at(buffer, now_);
  if (buffer.valid[now_]) return here;
  const size_t from = size_t(std::ranges::find(buffer.valid, true) - buffer.valid.begin());
  assert(from < stages_.size());
  Backend& source = *stages_[from].backend;
  Backend& target = *stages_[now_].backend;
  float* const there = buffer.at[from].get();
  if (target.writes_host()) {
    source.download(there, buffer.n_valid, here);
  } else if (source.writes_host()) {
    target.upload(there, buffer.n_valid, here);
  } else {
    host_.resize(std::max(host_.size(), buffer.n_valid));
    source.download(there, buffer.n_valid, host_.data());
    target.upload(host_.data(), buffer.n_valid, here);
  }
  buffer.valid[now_] = true;
  return here;
}

float* PipelineBackend::write(float* x, size_t n) {
  Buffer& buffer = Buffer::of(x);
  assert(n <= buffer.size);
  std::fill(buffer.valid.begin(), buffer.valid.end(), false);
  buffer.valid[now_] = true;
  buffer.n_valid = n;
  return memory_at(buffer, now_);
}

float* PipelineBackend::change(float* x) {
  read(x);
  return write(x, Buffer::of(x).n_valid);
}

KvShape PipelineBackend::part_of(const KvShape& shape, size_t stage) const {
  KvShape part = shape;
  const int end = stage + 1 < stages_.size() ? stages_[stage + 1].first_layer : shape.n_layer;
  part.n_layer = end - stages_[stage].first_layer;
  return part;
}

std::unique_ptr<KvCache> PipelineBackend::make_cache(const KvShape& shape) {
  std::vector<std::unique_ptr<KvCache>> parts;
  for (size_t i = 0; i < stages_.size(); ++i) parts.push_back(stages_[i].backend->make_cache(part_of(shape, i)));
  return std::make_unique<Cache>(shape, std::move(parts));
}

void PipelineBackend::check_cache(const KvShape& shape) {
  for (size_t i = 0; i < stages_.size(); ++i) stages_[i].backend->check_cache(part_of(shape, i));
}

// --- The order of a pass

void PipelineBackend::begin(const Batch& batch) {
  for (size_t i = 0; i < stages_.size(); ++i) {
    batches_[i] = batch;
    for (Span& span : batches_[i].spans) span.cache = static_cast<Cache*>(span.cache)->part(i);
    stages_[i].backend->begin(batches_[i]);
  }
}

void PipelineBackend::end() {
  for (const Stage& stage : stages_) stage.backend->end();
}

void PipelineBackend::upload(const float* host, size_t n, float* to) { here().upload(host, n, write(to, n)); }

// To every stage at once: later, a stage would have to interrupt its own operations.
void PipelineBackend::upload_table(const float* host, size_t n, float* to) {
  write(to, n);
  Buffer& buffer = Buffer::of(to);
  for (size_t i = 0; i < stages_.size(); ++i) {
    stages_[i].backend->upload_table(host, n, memory_at(buffer, i));
    buffer.valid[i] = true;
  }
}

void PipelineBackend::download(const float* from, size_t n, float* host) { here().download(read(from), n, host); }

// --- Operations

void PipelineBackend::embed(const Weight& table, std::span<const int32_t> ids, float* out) {
  here().embed(table, ids, write(out, ids.size() * size_t(table.n_cols)));
}

void PipelineBackend::rms_norm(const float* x, const float* weight, float eps, int n, int64_t n_cols, float* out) {
  const float* from = read(x);
  here().rms_norm(from, weight, eps, n, n_cols, write(out, size_t(n) * size_t(n_cols)));
}

void PipelineBackend::matmul(std::span<const Product> products, const float* x, int n, Phase phase) {
  const float* from = read(x);
  products_.assign(products.begin(), products.end());
  for (Product& p : products_) p.y = write(p.y, size_t(n) * size_t(p.weight->n_rows));
  here().matmul(products_, from, n, phase);
}

void PipelineBackend::rope(float* x, int n, int n_heads, int head_dim, int dims, const float* cos_sin,
                           RopeStyle style) {
  const float* table = read(cos_sin);
  here().rope(change(x), n, n_heads, head_dim, dims, table, style);
}

void PipelineBackend::store_kv(const Batch&, int layer, const float* k, const float* v) {
  here().store_kv(batches_[now_], layer_here(layer), read(k), read(v));
}

void PipelineBackend::attention(const Batch& batch, int layer, const float* q, int n_head, float scale, float* out) {
  const float* from = read(q);
  const size_t width = size_t(n_head) * size_t(batch.spans.front().cache->shape().head_dim_v);
  here().attention(batches_[now_], layer_here(layer), from, n_head, scale, write(out, size_t(batch.n_rows()) * width));
}

void PipelineBackend::swiglu(float* gate, const float* up, size_t n_elements) {
  const float* factor = read(up);
  here().swiglu(change(gate), factor, n_elements);
}

void PipelineBackend::add(float* x, const float* y, size_t n_elements) {
  const float* addend = read(y);
  here().add(change(x), addend, n_elements);
}

void PipelineBackend::gather_rows(const float* x, std::span<const int> rows, int64_t n_cols, float* out) {
  const float* from = read(x);
  here().gather_rows(from, rows, n_cols, write(out, rows.size() * size_t(n_cols)));
}

}  // namespace gristmill
