// A whole model on the back end: loading, prefill, decoding.
#include <chrono>
#include <memory>

#include "bench.h"
#include "cuda/cuda_backend.h"
#include "model_file.h"
#include "models/model.h"

namespace gristmill::cuda::bench {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

using Caches = std::vector<std::unique_ptr<KvCache>>;

class ModelBench {
 public:
  ModelBench(const Context& c, std::string mix, const ModelFile& file, const char* kind_of_file)
      : c_(c),
        mix_(std::move(mix)),
        file_(file),
        backend_(c.device.index),
        source_({file.path()}, file.tensors, file.metadata) {
    const auto began = Clock::now();
    model_ = models::make_model(source_, backend_);
    float one = 0.0f;
    backend_.download(backend_.allocate(1).get(), 1, &one);  // until all is there
    report("load", mix_ + kind_of_file, double(file.all_bytes) / 1e9 / seconds_since(began), "GB/s");
    const size_t most = size_t(std::max(1, c.sizes.sequences.back()));
    logits_.resize(size_t(c.sizes.n_vocab) * most);
    ids_.resize(kTop * most);
    values_.resize(kTop * most);
    finite_.resize(most);
  }

  void run(bool all) {
    decode(1, 16, true);
    decode(1, 16, false);
    if (all) {
      for (const int n : c_.sizes.sequences) decode(n, c_.sizes.shared_context, true);
      decode(1, c_.sizes.contexts.back(), true);
    }
    prefill();
  }

 private:
  static constexpr int kTop = 64;  // what the default chain of samplers asks for

  Caches caches(int count, int64_t n_ctx) {
    const models::Hyperparameters& h = model_->hyperparameters();
    Caches made;
    for (int i = 0; i < count; ++i)
      made.push_back(
          backend_.make_cache({h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, n_ctx, KvType::F16, KvType::F16}));
    return made;
  }

  // Seconds of one pass of n tokens for each cache; the last of each has its largest logits found, or all brought over.
  double pass(const Caches& caches, int n, bool top) {
    Batch batch;
    for (const auto& cache : caches) {
      batch.spans.push_back({cache.get(), batch.n_rows(), n});
      for (int i = 0; i < n; ++i) {
        batch.positions.push_back(cache->n_past() + i);
        batch.tokens.push_back(int32_t(int64_t(batch.n_rows()) * 7919 % c_.sizes.n_vocab));
      }
      batch.output_rows.push_back(batch.n_rows() - 1);
    }
    const TopLogits wanted{kTop, c_.sizes.n_vocab, ids_.data(), values_.data(), finite_.data()};
    if (top) batch.top = &wanted;
    const auto began = Clock::now();
    model_->forward(batch, top ? nullptr : logits_.data(), {});
    const double seconds = seconds_since(began);
    for (const auto& cache : caches) cache->advance(n);
    return seconds;
  }

  void decode(int count, int64_t past, bool top) {
    const Caches all = caches(count, past + 64);
    for (const auto& cache : all) cache->advance(past);  // what the positions hold does not matter for speed
    for (int i = 0; i < 3; ++i) pass(all, 1, top);       // buffers are made, and the step becomes a graph
    std::vector<double> times;
    for (int i = 0; i < std::max(3, 2 * c_.sizes.repeats); ++i) times.push_back(pass(all, 1, top));
    const double seconds = median(times);
    const models::Hyperparameters& h = model_->hyperparameters();
    const double kv = double(past * count) * h.n_layer * h.n_head_kv * (h.head_dim_k + h.head_dim_v) * 2.0;
    const double bytes = double(file_.layer_bytes + file_.output_bytes) + kv;  // a row of the embedding is nothing
    report("model",
           mix_ + " decode, " + std::to_string(count) + " x " + std::to_string(past) +
               (top ? "" : ", all logits to the host"),
           count / seconds, "tok/s", bytes / seconds / c_.limits.read_bytes, "read");
  }

  // From an empty context each time.
  void prefill() {
    const int n = c_.sizes.prefill;
    const Caches one = caches(1, n);
    std::vector<double> times;
    for (int i = 0; i < std::max(2, c_.sizes.repeats); ++i) {
      one.front()->truncate(0);
      const double seconds = pass(one, n, true);
      if (i > 0) times.push_back(seconds);  // the first makes the buffers
    }
    const double seconds = median(times);
    const Sizes& s = c_.sizes;
    const double weights =
        double(s.n_embd) * double(2 * s.n_head * s.head_dim + 2 * s.n_head_kv * s.head_dim + 3 * s.n_ff);
    const double flops = 2.0 * n * model_->hyperparameters().n_layer * weights;
    const std::string name = mix_ + " prefill " + std::to_string(n);
    report("model", name, n / seconds, "tok/s");
    report("model", name + ", matrices", flops / seconds / 1e12, "TFLOP/s", flops / seconds / c_.limits.gemm_flops,
           c_.limits.gemm);
  }

  const Context& c_;
  std::string mix_;
  const ModelFile& file_;
  CudaBackend backend_;
  models::ModelSource source_;
  std::unique_ptr<models::Model> model_;
  std::vector<float> logits_, values_;
  std::vector<int32_t> ids_, finite_;
};

}  // namespace

void bench_model(const Context& c, const std::string& mix, int n_layer) {
  // A real file's speed of loading in one mix; a quarter of the memory stays for everything else.
  const bool first = mix == "Q4_K_M";
  const bool distinct = first && file_bytes(c.sizes, mix, n_layer) < available_memory() / 4 * 3;
  const ModelFile file(c.sizes, mix, n_layer, distinct);
  ModelBench bench(c, mix, file, distinct ? ", from memory" : ", every layer the same pages");
  bench.run(first);
}

}  // namespace gristmill::cuda::bench
