// What the bindings drive: a model on a backend, and sessions that each own a KV cache.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "backend.h"
#include "models/model.h"
#include "observing_backend.h"

namespace gristmill {

struct EngineOptions {
  int64_t n_ctx = 0;  // 0: the model's own
  int n_threads = 0;  // 0: physical cores
  KvType type_k = KvType::F16, type_v = KvType::F16;
  std::string isa;             // empty: GRISTMILL_ISA or the best
  bool precise = false;        // prefill with activations of 15 bits instead of 8
  std::string device = "cpu";  // device_choice.h
};

enum class LogitsOf { kNone, kLast, kAll };

class Engine {
 public:
  Engine(models::ModelSource source, const EngineOptions& options);

  const models::Hyperparameters& hyperparameters() const { return model_->hyperparameters(); }
  const models::ModelSource& source() const { return source_; }
  // The CPU's instruction set, whose kernels run where the device is "cpu".
  const std::string& isa() const { return isa_; }
  const std::string& device() const { return device_; }
  // Why the automatic choice was not a GPU; empty where it was, or was not asked for.
  const std::string& device_note() const { return device_note_; }
  int64_t n_ctx() const { return n_ctx_; }
  int n_threads() const { return backend_->n_threads(); }
  // Most tokens that a pass should have, so that work space stays small beside the file.
  int max_batch() const { return max_batch_; }

  std::unique_ptr<KvCache> make_cache() const;
  // Tokens of one sequence, appended to its cache. logits: [0, 1 or tokens.size(), n_vocab], as `wanted` says.
  // between_layers, where given, may throw to give the pass up; the cache is then as it was. residuals: nullptr, or
  // [n_layer + 1, tokens.size(), n_embd], as in Batch.
  void forward(KvCache& cache, std::span<const int32_t> tokens, LogitsOf wanted, float* logits,
               const std::function<void()>& between_layers = {}, float* residuals = nullptr);
  // One token for each of several sequences; logits [caches.size(), n_vocab].
  void decode(std::span<KvCache* const> caches, std::span<const int32_t> tokens, float* logits);
  void truncate(KvCache& cache, int64_t n);

  // From now on the squares of all inputs of matrices are summed.
  void observe();
  // What was summed since, by the names of tensors; empty without observe().
  std::map<std::string, InputSquares> input_squares();

 private:
  void check_tokens(std::span<const int32_t> tokens) const;
  void check_finite(const Batch& batch, const float* logits) const;
  void run(const Batch& batch, float* logits, const std::function<void()>& between_layers);

  models::ModelSource source_;
  std::unique_ptr<Backend> backend_;
  ObservingBackend* observer_ = nullptr;  // backend_, after observe()
  std::unique_ptr<models::Model> model_;
  std::string isa_, device_, device_note_;
  int64_t n_ctx_;
  int max_batch_;
  EngineOptions options_;
  std::mutex mutex_;  // one pass at a time: work space and threads are shared, and caches change only under it
};

}  // namespace gristmill
