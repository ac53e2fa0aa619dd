// A whole model of two layers on the emulated device, through the host code that a GPU runs: its logits against the CPU
// back end's, for prefill, decoding, several sequences together, truncation, and every type of cache.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "cuda/cuda_backend.h"
#include "device_under_test.h"
#include "models/model.h"
#include "tiny_model.h"

namespace gristmill::cuda::test {
namespace {

using gristmill::test::make_tiny;
using gristmill::test::MemoryFile;
using gristmill::test::TinyModel;
using gristmill::test::TinyShape;

// A model on a backend, driven as the engine drives it.
class Runner {
 public:
  Runner(const TinyModel& tiny, const std::string& path, Backend& backend)
      : source_({path}, tiny.tensors, tiny.metadata), backend_(backend), model_(models::make_model(source_, backend)) {}

  std::unique_ptr<KvCache> make_cache(KvType type_k, KvType type_v) {
    const models::Hyperparameters& h = model_->hyperparameters();
    return backend_.make_cache({h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, 40, type_k, type_v});
  }

  // tokens[i] go to caches[i]; logits of every row are appended.
  void forward(const std::vector<KvCache*>& caches, const std::vector<std::vector<int32_t>>& tokens,
               std::vector<float>& logits) {
    Batch batch;
    for (size_t i = 0; i < caches.size(); ++i) {
      batch.spans.push_back({caches[i], batch.n_rows(), int(tokens[i].size())});
      for (const int32_t token : tokens[i]) {
        batch.output_rows.push_back(batch.n_rows());
        batch.positions.push_back(caches[i]->n_past() + batch.n_rows() - batch.spans.back().first_row);
        batch.tokens.push_back(token);
      }
    }
    const size_t before = logits.size();
    logits.resize(before + batch.output_rows.size() * size_t(model_->hyperparameters().n_vocab));
    model_->forward(batch, logits.data() + before, {});
    for (const Span& span : batch.spans) span.cache->advance(span.n_rows);
  }

  // Two prompts, three steps together, one step back and another token.
  std::vector<float> story(KvType type_k, KvType type_v) {
    std::vector<float> logits;
    const auto a = make_cache(type_k, type_v), b = make_cache(type_k, type_v);
    forward({a.get()}, {{1, 7, 39, 0, 7, 22, 13}}, logits);
    forward({b.get()}, {{5, 6}}, logits);
    for (const int32_t token : {3, 30, 31}) forward({a.get(), b.get()}, {{token}, {token + 1}}, logits);
    a->truncate(a->n_past() - 1);
    forward({a.get()}, {{12}}, logits);
    forward({a.get()}, {{11, 12, 13}}, logits);
    return logits;
  }

 private:
  models::ModelSource source_;
  Backend& backend_;
  std::unique_ptr<models::Model> model_;
};

void check_model(const TinyShape& shape, formats::TypeId format, KvType type_k, KvType type_v) {
  const std::string name = shape.architecture + " " + std::string(formats::find_format(uint32_t(format))->name) +
                           " cache " + std::to_string(int(type_k)) + std::to_string(int(type_v));
  const TinyModel tiny = make_tiny(shape, format);
  const MemoryFile file;
  CHECK(file.write(tiny.bytes));
  cpu::CpuBackend cpu(cpu::choose_kernels("scalar"), 1, cpu::ActivationBits::k15);
  CudaBackend device(0);
  const std::vector<float> expected = Runner(tiny, file.path(), cpu).story(type_k, type_v);
  const std::vector<float> got = Runner(tiny, file.path(), device).story(type_k, type_v);
  double squares = 0.0, worst = 0.0;
  for (size_t i = 0; i < expected.size(); ++i) {
    squares += double(expected[i]) * expected[i];
    const double error = std::fabs(double(got[i]) - expected[i]);
    worst = std::isnan(error) ? error : std::max(worst, error);
  }
  const double rms = std::sqrt(squares / double(expected.size()));
  // What int8 KV and the order of float32 sums may move; prefill on the device rounds activations to halves.
  CHECK(worst <= 2e-3 * rms, "%s: logits differ by %g of their RMS", name.c_str(), worst / rms);
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  using formats::TypeId;
  cuda::emulation::set_seed(1);
  test::TinyShape shape;
  shape.n_layer = 2;
  for (const TypeId format : {TypeId::Q4_K, TypeId::Q6_K, TypeId::F16})
    cuda::test::check_model(shape, format, KvType::F16, KvType::F16);
  cuda::emulation::set_seed(2);
  cuda::emulation::device_traits().major = 8;
  cuda::emulation::device_traits().multiprocessors = 2;
  cuda::test::check_model(shape, TypeId::Q4_0, KvType::Q8_0, KvType::Q8_0);
  cuda::test::check_model(shape, TypeId::Q8_0, KvType::F32, KvType::F16);
  shape.architecture = "llama";
  cuda::test::check_model(shape, TypeId::Q5_K, KvType::F16, KvType::F16);
  CHECK(cuda::emulation::device_traits().used_bytes == 0, "memory of the device leaks: %lld bytes",
        static_cast<long long>(cuda::emulation::device_traits().used_bytes));
  return test::failures("test_model");
}
