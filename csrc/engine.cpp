#include "engine.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"

namespace gristmill {
namespace {

constexpr int64_t kWorkspaceBytes = 96 << 20;
constexpr int kMaxBatch = 512;

}  // namespace

Engine::Engine(models::ModelSource source, const EngineOptions& options)
    : source_(std::move(source)), options_(options) {
  n_threads_ = options.n_threads > 0 ? options.n_threads : default_thread_count();
  const cpu::Kernels& kernels = cpu::choose_kernels(options.isa);
  isa_ = kernels.name;
  backend_ = std::make_unique<cpu::CpuBackend>(kernels, n_threads_);
  model_ = models::make_model(source_, *backend_);
  const models::Hyperparameters& h = hyperparameters();
  n_ctx_ = options.n_ctx > 0 ? options.n_ctx : h.n_ctx_train;
  const int64_t width = 3 * h.n_embd + 2 * h.n_ff + int64_t(h.n_head) * (h.head_dim_k + h.head_dim_v);
  max_batch_ = int(std::clamp<int64_t>(kWorkspaceBytes / (width * int64_t(sizeof(float))) / 16 * 16, 16, kMaxBatch));
}

std::unique_ptr<KvCache> Engine::make_cache() {
  const models::Hyperparameters& h = hyperparameters();
  return backend_->make_cache(
      {h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, n_ctx_, options_.type_k, options_.type_v});
}

void Engine::check_tokens(std::span<const int32_t> tokens) const {
  const int64_t n_vocab = hyperparameters().n_vocab;
  for (const int32_t token : tokens)
    if (token < 0 || token >= n_vocab)
      throw ArgumentError("[forward] token, expected 0 to " + std::to_string(n_vocab - 1) + ", got " + std::to_string(token));
}

void Engine::run(const Batch& batch, float* logits) {
  const std::lock_guard lock(mutex_);
  model_->forward(batch, logits);
  source_.check_files();
  const int64_t n_vocab = hyperparameters().n_vocab;
  for (size_t i = 0; i < batch.output_rows.size(); ++i) {
    const float* row = logits + int64_t(i) * n_vocab;
    // A sum is finite only if every term is (and float32 logits do not overflow one).
    float sum = 0.0f;
    for (int64_t j = 0; j < n_vocab; ++j) sum += row[j] * 0.0f;
    if (!std::isfinite(sum))
      throw Error(source_.path() + ": the logits at position " + std::to_string(batch.positions[size_t(batch.output_rows[i])]) +
                  " are not finite; the file's weights or scales hold NaN or infinity, or overflow");
  }
  // Last: after an error the sequences hold what they held before.
  for (const Span& span : batch.spans) span.cache->advance(span.n_rows);
}

void Engine::forward(KvCache& cache, std::span<const int32_t> tokens, bool all_logits, float* logits) {
  if (tokens.empty()) throw ArgumentError("[forward] tokens, expected at least one, got none");
  check_tokens(tokens);
  if (cache.n_past() + int64_t(tokens.size()) > n_ctx_)
    throw ContextFullError("[forward] context of " + std::to_string(n_ctx_) + " tokens holds " +
                           std::to_string(cache.n_past()) + ", so " + std::to_string(tokens.size()) + " more do not fit");
  for (size_t first = 0; first < tokens.size(); first += size_t(max_batch_)) {
    const std::span<const int32_t> some = tokens.subspan(first, std::min(tokens.size() - first, size_t(max_batch_)));
    Batch batch;
    batch.tokens.assign(some.begin(), some.end());
    batch.spans.push_back({&cache, 0, int(some.size())});
    for (size_t i = 0; i < some.size(); ++i) {
      batch.positions.push_back(cache.n_past() + int64_t(i));
      if (all_logits || first + i + 1 == tokens.size()) batch.output_rows.push_back(int(i));
    }
    run(batch, logits + (all_logits ? int64_t(first) * hyperparameters().n_vocab : 0));
  }
}

void Engine::decode(std::span<KvCache* const> caches, std::span<const int32_t> tokens, float* logits) {
  if (caches.empty() || caches.size() != tokens.size())
    throw ArgumentError("[decode] tokens, expected one for each of " + std::to_string(caches.size()) + " sessions, got " + std::to_string(tokens.size()));
  check_tokens(tokens);
  Batch batch;
  for (size_t i = 0; i < caches.size(); ++i) {
    if (std::ranges::count(caches, caches[i]) != 1) throw ArgumentError("[decode] sessions, one appears twice");
    if (caches[i]->n_past() + 1 > n_ctx_)
      throw ContextFullError("[decode] the context of " + std::to_string(n_ctx_) + " tokens is full");
    batch.tokens.push_back(tokens[i]);
    batch.positions.push_back(caches[i]->n_past());
    batch.spans.push_back({caches[i], int(i), 1});
    batch.output_rows.push_back(int(i));
  }
  run(batch, logits);
}

}  // namespace gristmill
