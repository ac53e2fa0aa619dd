// A few layers and the output of a model, a prompt and a step, on the GPU and on the CPU back end.
#include <cmath>
#include <cstring>
#include <thread>

#include "bench.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "cuda/cuda_backend.h"
#include "model_file.h"
#include "models/model.h"
#include "verify.h"

namespace gristmill::cuda::bench {
namespace {

// Steps after the prompt, the same one each time: the first runs as launches, the second is captured, the third is a
// graph.
constexpr size_t kSteps = 3;

// Logits of the last token of a prompt, then of each step.
std::vector<float> run(const ModelFile& file, Backend& backend, const Sizes& sizes, int n_prompt) {
  models::ModelSource source({file.path()}, file.tensors, file.metadata);
  const auto model = models::make_model(source, backend);
  const models::Hyperparameters& h = model->hyperparameters();
  const auto cache =
      backend.make_cache({h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, n_prompt + 1, KvType::F16, KvType::F16});
  const size_t n_vocab = size_t(sizes.n_vocab);
  std::vector<float> logits((1 + kSteps) * n_vocab);
  for (size_t step = 0; step <= kSteps; ++step) {
    const int n = step == 0 ? n_prompt : 1;
    Batch batch;
    batch.spans.push_back({cache.get(), 0, n});
    for (int i = 0; i < n; ++i) {
      batch.positions.push_back(cache->n_past() + i);
      batch.tokens.push_back(int32_t(batch.positions.back() * 7919 % sizes.n_vocab));
    }
    batch.output_rows.push_back(n - 1);
    model->forward(batch, logits.data() + step * n_vocab, {});
    if (step == 0) cache->advance(n);
  }
  return logits;
}

}  // namespace

void compare_with_cpu(const Context& c, const std::string& mix) {
  constexpr int kPrompt = 40;  // more than are multiplied as in decoding
  constexpr double kBound = 6e-3;
  constexpr int kLayers = 4;  // as few as have every format of a mix
  const ModelFile file(c.sizes, mix, kLayers, false);
  CudaBackend gpu(c.device.index);
  const std::vector<float> found = run(file, gpu, c.sizes, kPrompt);
  cpu::CpuBackend cpu(cpu::choose_kernels("scalar"), std::max(1, int(std::thread::hardware_concurrency())), true);
  const std::vector<float> expected = run(file, cpu, c.sizes, kPrompt);
  const size_t n_vocab = size_t(c.sizes.n_vocab);
  for (size_t step = 0; step <= kSteps; ++step) {
    double squares = 0.0, errors = 0.0;
    for (size_t i = step * n_vocab; i < (step + 1) * n_vocab; ++i) {
      squares += double(expected[i]) * expected[i];
      errors += std::pow(double(found[i]) - expected[i], 2);
    }
    // Halves in the prompt, 15 bits of each activation in a step, whose keys and values the prompt made. Of the former
    // the rounding alone, simulated with these repeating rows, gave 0.0009 to 0.0030; a lost tile is about 0.2.
    const double error = std::sqrt(errors / squares);
    const std::string name = mix + ", four layers, " + (step == 0 ? "prompt" : "step " + std::to_string(step)) +
                             ", differs from the CPU's by";
    report("logits", name, error, "of RMS");
    if (!(error <= kBound)) complain(name, std::to_string(error) + ", expected at most " + std::to_string(kBound));
  }
  // The same number where the same bits come out, whatever GRISTMILL_CUDA_* says.
  uint32_t sum = 0;
  for (const float x : found) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    sum = (sum ^ bits) * 16777619u;
  }
  report("logits", mix + ", four layers, bits", sum % 1000000, "");
}

}  // namespace gristmill::cuda::bench
