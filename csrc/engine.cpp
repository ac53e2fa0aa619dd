#include "engine.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <set>

#include "core/error.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "models/blocks.h"

namespace gristmill {
namespace {

// What activations of one pass may take; a pass has at least kMinBatch tokens all the same.
constexpr int64_t kWorkspaceBytes = 96 << 20;
constexpr int kMinBatch = 16, kMaxBatch = 512;
// On GPUs alone: prefill unpacks every weight once a pass, so passes are large.
constexpr int64_t kGpuWorkspaceBytes = 1 << 30;
constexpr int kGpuMaxBatch = 2048;

// Activations of one token.
int64_t token_bytes(const models::Hyperparameters& h) {
  const auto widths = models::activation_widths(h);
  const int64_t floats = std::accumulate(widths.begin(), widths.end(), int64_t{0});
  return floats * int64_t(sizeof(float)) + 4 * std::max(h.n_ff, h.n_embd);  // and quantized inputs
}

// Tokens of a pass.
int pass_size(const models::Hyperparameters& h, int64_t workspace_bytes, int max_batch) {
  return int(std::clamp<int64_t>(workspace_bytes / token_bytes(h) / 16 * 16, kMinBatch, max_batch));
}

DeviceChoice choose(models::ModelSource& source, const EngineOptions& options) {
  models::check_architecture(source);
  const models::Hyperparameters h = models::read_hyperparameters(source, RopeStyle::kNeox);  // the style is not used
  return choose_device(source, h, pass_size(h, kGpuWorkspaceBytes, kGpuMaxBatch),
                       pass_size(h, kWorkspaceBytes, kMaxBatch),
                       {options.device, options.n_gpu_layers, options.main_gpu, options.tensor_split, options.n_ctx,
                        options.type_k, options.type_v});
}

}  // namespace

Engine::Engine(models::ModelSource source, const EngineOptions& options)
    : source_(std::move(source)), options_(options) {
  const cpu::Kernels& kernels = cpu::choose_kernels(options.isa);
  isa_ = kernels.name;
  devices_ = choose(source_, options);
  backend_ = make_backend(devices_, [&] {
    return std::make_unique<cpu::CpuBackend>(
        kernels, options.n_threads > 0 ? options.n_threads : default_thread_count(), options.precise);
  });
  source_.tell_progress(options.progress);
  model_ = models::make_model(source_, *backend_);
  source_.tell_progress({});
  options_.progress = {};  // it need not live longer than this call
  n_ctx_ = options.n_ctx > 0 ? options.n_ctx : hyperparameters().n_ctx_train;
  // A context that cannot be had is an error of loading, not of the first session.
  backend_->check_cache(cache_shape());
}

KvShape Engine::cache_shape() const {
  const models::Hyperparameters& h = hyperparameters();
  return {h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, n_ctx_, options_.type_k, options_.type_v};
}

std::unique_ptr<KvCache> Engine::make_cache() const { return backend_->make_cache(cache_shape()); }

void Engine::check_tokens(std::span<const int32_t> tokens) const {
  const int64_t n_vocab = hyperparameters().n_vocab;
  for (const int32_t token : tokens)
    if (token < 0 || token >= n_vocab)
      throw ArgumentError("[forward] token, expected 0 to " + std::to_string(n_vocab - 1) + ", got " +
                          std::to_string(token));
}

void Engine::check_top(const TopLogits* top) const {
  if (!top) return;
  if (!finds_top_logits()) throw ArgumentError("[top logits] the output, expected on a GPU");
  const int64_t n_vocab = hyperparameters().n_vocab;
  if (top->n_vocab < 1 || top->n_vocab > n_vocab)
    throw ArgumentError("[top logits] vocabulary, expected 1 to " + std::to_string(n_vocab) + ", got " +
                        std::to_string(top->n_vocab));
  const int64_t most = std::min<int64_t>(top->n_vocab, kMostTopLogits);
  if (top->k < 1 || top->k > most)
    throw ArgumentError("[top logits] number, expected 1 to " + std::to_string(most) + ", got " +
                        std::to_string(top->k));
}

void Engine::check_finite(const Batch& batch, const float* logits) const {
  const int64_t n_vocab = hyperparameters().n_vocab;
  const auto all_finite = [&](size_t i) {
    if (batch.top) return batch.top->finite[i] != 0;
    const float* row = logits + int64_t(i) * n_vocab;
    // An exponent of all ones, infinity's and NaN's, carries into the sign. Every processor has vectors of these.
    uint32_t carried = 0;
    for (int64_t j = 0; j < n_vocab; ++j) carried |= (std::bit_cast<uint32_t>(row[j]) & 0x7f800000u) + 0x00800000u;
    return (carried & 0x80000000u) == 0;
  };
  for (size_t i = 0; i < batch.output_rows.size(); ++i) {
    if (!all_finite(i))
      throw Error(source_.path() + ": the logits at position " +
                  std::to_string(batch.positions[size_t(batch.output_rows[i])]) +
                  " are not finite; the file's weights or scales hold NaN or infinity, or overflow");
  }
}

void Engine::run(const Batch& batch, float* logits, const std::function<void()>& between_layers) {
  model_->forward(batch, logits, between_layers);
  source_.check_files();
  check_finite(batch, logits);
  for (const Span& span : batch.spans) span.cache->advance(span.n_rows);
}

void Engine::forward(KvCache& cache, std::span<const int32_t> tokens, LogitsOf wanted, float* logits,
                     const std::function<void()>& between_layers, float* residuals, const TopLogits* top) {
  check_top(top);
  Batch batch;
  batch.residuals = residuals;
  batch.top = top;
  batch.tokens.assign(tokens.begin(), tokens.end());  // the caller's array may change while this one is checked and run
  if (tokens.empty()) throw ArgumentError("[forward] tokens, expected at least one, got none");
  check_tokens(batch.tokens);
  const std::lock_guard lock(mutex_);
  const int n = batch.n_rows();
  if (cache.n_past() + n > n_ctx_)
    throw ContextFullError("[forward] the context of " + std::to_string(n_ctx_) + " tokens holds " +
                           std::to_string(cache.n_past()) + ", so " + std::to_string(n) + " more do not fit");
  batch.spans.push_back({&cache, 0, n});
  for (int i = 0; i < n; ++i) {
    batch.positions.push_back(cache.n_past() + i);
    if (wanted == LogitsOf::kAll || (wanted == LogitsOf::kLast && i + 1 == n)) batch.output_rows.push_back(i);
  }
  run(batch, logits, between_layers);
}

void Engine::decode(std::span<KvCache* const> caches, std::span<const int32_t> tokens, float* logits,
                    const TopLogits* top) {
  check_top(top);
  if (caches.empty() || caches.size() != tokens.size())
    throw ArgumentError("[decode] tokens, expected one for each of " + std::to_string(caches.size()) +
                        " sessions, got " + std::to_string(tokens.size()));
  if (std::set<KvCache*>(caches.begin(), caches.end()).size() != caches.size())
    throw ArgumentError("[decode] sessions, one appears twice");
  const std::vector<int32_t> ids(tokens.begin(), tokens.end());
  check_tokens(ids);
  const std::lock_guard lock(mutex_);
  for (const KvCache* cache : caches)
    if (cache->n_past() + 1 > n_ctx_)
      throw ContextFullError("[decode] the context of " + std::to_string(n_ctx_) + " tokens is full");
  for (size_t first = 0; first < ids.size(); first += size_t(max_batch())) {
    Batch batch;
    for (size_t i = first; i < std::min(ids.size(), first + size_t(max_batch())); ++i) {
      const int row = batch.n_rows();
      batch.tokens.push_back(ids[i]);
      batch.positions.push_back(caches[i]->n_past());
      batch.spans.push_back({caches[i], row, 1});
      batch.output_rows.push_back(row);
    }
    TopLogits some;
    if (top) {
      some = top->from_row(int64_t(first));
      batch.top = &some;
    }
    run(batch, top ? nullptr : logits + int64_t(first) * hyperparameters().n_vocab, {});
  }
}

void Engine::truncate(KvCache& cache, int64_t n) {
  const std::lock_guard lock(mutex_);
  if (n < 0 || n > cache.n_past())
    throw ArgumentError("[truncate] length, expected 0 to " + std::to_string(cache.n_past()) + ", got " +
                        std::to_string(n));
  cache.truncate(n);
}

void Engine::observe() {
  const std::lock_guard lock(mutex_);
  if (observer_) return;
  if (!backend_->writes_host())
    throw ArgumentError("[observe] the model, expected on the CPU, where weights keep their place in the file");
  auto observer = std::make_unique<ObservingBackend>(std::move(backend_));
  ObservingBackend* const watching = observer.get();
  backend_ = std::move(observer);
  model_ = models::make_model(source_, *backend_);
  observer_ = watching;
}

std::map<std::string, InputSquares> Engine::input_squares() {
  const std::lock_guard lock(mutex_);
  std::map<std::string, InputSquares> named;
  if (observer_)
    for (const auto& [data, squares] : observer_->squares()) named[source_.name_at(data)] = squares;
  return named;
}

}  // namespace gristmill
