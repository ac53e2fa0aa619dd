// What the bindings drive: a model on a backend, and sessions that each own a KV cache.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "backend.h"
#include "device_choice.h"
#include "models/model.h"
#include "observing_backend.h"

namespace gristmill {

struct EngineOptions {
  int64_t n_ctx = 0;  // 0: the model's own
  int n_threads = 0;  // 0: physical cores
  KvType type_k = KvType::F16, type_v = KvType::F16;
  std::string isa;       // empty: GRISTMILL_ISA or the best
  bool precise = false;  // activations of 15 bits instead of 8
  // As in DeviceRequest.
  std::string device = "cpu";
  std::optional<int> n_gpu_layers = {};
  int main_gpu = -1;
  std::vector<double> tensor_split = {};
  // Told how many of the file's bytes of weights were read, of how many; may throw to give loading up.
  std::function<void(int64_t, int64_t)> progress = {};
};

enum class LogitsOf { kNone, kLast, kAll };

class Engine {
 public:
  Engine(models::ModelSource source, const EngineOptions& options);

  const models::Hyperparameters& hyperparameters() const { return model_->hyperparameters(); }
  const models::ModelSource& source() const { return source_; }
  // The CPU's instruction set, whose kernels run where the device is "cpu".
  const std::string& isa() const { return isa_; }
  // Every layer's device, in order.
  const std::vector<DeviceLayers>& device_layers() const { return devices_.layers; }
  // Why the automatic choice was not a GPU, or not for all layers; empty where it was, or was not asked for.
  const std::string& device_note() const { return devices_.note; }
  // What is slow on the GPUs that were chosen, and what would not be; mostly empty.
  const std::string& device_slow() const { return devices_.slow; }
  int64_t n_ctx() const { return n_ctx_; }
  int n_threads() const { return backend_->n_threads(); }
  // Most tokens that a pass should have, so that work space stays small beside the file.
  int max_batch() const { return devices_.max_batch; }

  std::unique_ptr<KvCache> make_cache() const;
  // Tokens of one sequence, appended to its cache. logits: [0, 1 or tokens.size(), n_vocab], as `wanted` says.
  // between_layers, where given, may throw to give the pass up; the cache is then as it was. residuals: nullptr, or
  // [n_layer + 1, tokens.size(), n_embd], as in Batch. top: nullptr, or where the largest logits go instead of all.
  void forward(KvCache& cache, std::span<const int32_t> tokens, LogitsOf wanted, float* logits,
               const std::function<void()>& between_layers = {}, float* residuals = nullptr,
               const TopLogits* top = nullptr);
  // One token for each of several sequences; logits [caches.size(), n_vocab], or top.
  void decode(std::span<KvCache* const> caches, std::span<const int32_t> tokens, float* logits,
              const TopLogits* top = nullptr);
  // Whether the device finds the largest logits, kMostTopLogits of a row at most.
  bool finds_top_logits() const { return backend_->finds_top_logits(); }
  static constexpr int kMostTopLogits = 1024;
  void truncate(KvCache& cache, int64_t n);

  // From now on the squares of all inputs of matrices are summed.
  void observe();
  // What was summed since, by the names of tensors; empty without observe().
  std::map<std::string, InputSquares> input_squares();

 private:
  KvShape cache_shape() const;
  void check_tokens(std::span<const int32_t> tokens) const;
  void check_top(const TopLogits* top) const;
  void check_finite(const Batch& batch, const float* logits) const;
  void run(const Batch& batch, float* logits, const std::function<void()>& between_layers);

  models::ModelSource source_;
  DeviceChoice devices_;
  std::unique_ptr<Backend> backend_;
  ObservingBackend* observer_ = nullptr;  // backend_, after observe()
  std::unique_ptr<models::Model> model_;
  std::string isa_;
  int64_t n_ctx_;
  EngineOptions options_;
  std::mutex mutex_;  // one pass at a time: work space and threads are shared, and caches change only under it
};

}  // namespace gristmill
