// A whole model on the back end: loading, prefill, decoding; and that a step gives the same bits every time, first as
// launches, then as a graph.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>

#include "bench.h"
#include "cuda/cuda_backend.h"
#include "cuda/switches.h"
#include "model_file.h"
#include "models/model.h"
#include "verify.h"

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
    decode(1, 16, KvType::F16, true);
    decode(1, 16, KvType::F16, false);
    if (all) {
      for (const int n : c_.sizes.sequences) decode(n, c_.sizes.shared_context, KvType::F16, true);
      for (const KvType type : {KvType::F16, KvType::Q8_0}) decode(1, c_.sizes.contexts.back(), type, true);
    }
    prefill();
  }

 private:
  static constexpr int kTop = 64;  // what the default chain of samplers asks for

  Caches caches(int count, int64_t n_ctx, KvType type) {
    const models::Hyperparameters& h = model_->hyperparameters();
    Caches made;
    for (int i = 0; i < count; ++i)
      made.push_back(backend_.make_cache({h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, n_ctx, type, type}));
    return made;
  }

  // What a pass brings to the host of the last row of each cache: nothing, the largest logits, or all.
  enum class Wanted { kNothing, kTop, kAll };

  // Seconds of one pass of n tokens for each cache.
  double pass(std::span<const std::unique_ptr<KvCache>> caches, int n, Wanted wanted) {
    Batch batch;
    for (const auto& cache : caches) {
      batch.spans.push_back({cache.get(), batch.n_rows(), n});
      for (int i = 0; i < n; ++i) {
        batch.positions.push_back(cache->n_past() + i);
        batch.tokens.push_back(int32_t((int64_t(batch.n_rows()) + batch.positions.back()) * 7919 % c_.sizes.n_vocab));
      }
      if (wanted != Wanted::kNothing) batch.output_rows.push_back(batch.n_rows() - 1);
    }
    const TopLogits top{kTop, c_.sizes.n_vocab, ids_.data(), values_.data(), finite_.data()};
    if (wanted == Wanted::kTop) batch.top = &top;
    const auto began = Clock::now();
    model_->forward(batch, wanted == Wanted::kAll ? logits_.data() : nullptr, {});
    const double seconds = seconds_since(began);
    for (const auto& cache : caches) cache->advance(n);
    return seconds;
  }

  // What the last pass brought.
  std::vector<float> results(int count, Wanted wanted) const {
    const float* const from = wanted == Wanted::kTop ? values_.data() : logits_.data();
    return {from, from + (wanted == Wanted::kTop ? int64_t{kTop} : c_.sizes.n_vocab) * count};
  }

  // The same step over and over.
  void decode(int count, int64_t past, KvType type, bool top) {
    const std::string name = mix_ + " decode, " + std::to_string(count) + " x " + std::to_string(past) +
                             (type == KvType::Q8_0 ? ", q8_0 cache" : "") + (top ? "" : ", all logits to the host");
    const Wanted wanted = top ? Wanted::kTop : Wanted::kAll;
    const Caches all = caches(count, past + 1, type);
    for (size_t i = 0; i < all.size(); ++i)
      while (all[i]->n_past() < past)
        pass(std::span(all).subspan(i, 1), int(std::min<int64_t>(past - all[i]->n_past(), c_.sizes.prefill)),
             Wanted::kNothing);
    std::vector<double> times;
    std::vector<float> first;
    for (int i = 0; i < 3 + std::max(3, 2 * c_.sizes.repeats); ++i) {
      const double seconds = pass(all, 1, wanted);
      if (i >= 3) times.push_back(seconds);  // in the first buffers are made, and the step becomes a graph
      for (const auto& cache : all) cache->truncate(past);
      const std::vector<float> now = results(count, wanted);
      if (i == 0) first = now;
      if (std::memcmp(now.data(), first.data(), now.size() * sizeof(float)) != 0)
        complain(name, "other bits in step " + std::to_string(i));
    }
    if (switches().graphs && backend_.n_graphs() == 0) complain(name, "the step became no graph");
    if (!std::ranges::all_of(first, [](float x) { return std::isfinite(x); }) ||
        (top && std::count(finite_.begin(), finite_.begin() + count, 0) > 0))
      complain(name, "a logit is not finite");
    const double seconds = median(times);
    const models::Hyperparameters& h = model_->hyperparameters();
    const double per_value = type == KvType::Q8_0 ? 34.0 / 32 : 2.0;
    const double kv = double(past * count) * h.n_layer * h.n_head_kv * (h.head_dim_k + h.head_dim_v) * per_value;
    const double bytes = double(file_.layer_bytes + file_.output_bytes) + kv;  // a row of the embedding is nothing
    report("model", name, count / seconds, "tok/s", bytes / seconds / c_.limits.read_bytes, "read");
  }

  // From an empty context each time.
  void prefill() {
    const int n = c_.sizes.prefill;
    const Caches one = caches(1, n, KvType::F16);
    std::vector<double> times;
    for (int i = 0; i < std::max(2, c_.sizes.repeats); ++i) {
      one.front()->truncate(0);
      const double seconds = pass(one, n, Wanted::kTop);
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
