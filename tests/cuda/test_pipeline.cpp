// A model whose layers are shared among the CPU and GPUs, for every split: logits and residual streams against the
// CPU's alone.
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "cuda/cuda_backend.h"
#include "device_under_test.h"
#include "model_runner.h"
#include "pipeline_backend.h"

namespace gristmill::cuda::test {
namespace {

std::unique_ptr<Backend> make_cpu() {
  return std::make_unique<cpu::CpuBackend>(cpu::choose_kernels("scalar"), 1, true);
}

// devices: -1 for the CPU, else the GPU, or one of those there are where they are fewer; first: the first layer of
// each.
std::unique_ptr<Backend> make_pipeline(const std::vector<int>& devices, const std::vector<int>& first) {
  std::vector<PipelineBackend::Stage> stages;
  for (size_t i = 0; i < devices.size(); ++i)
    stages.push_back(
        {devices[i] < 0 ? make_cpu() : std::make_unique<CudaBackend>(devices[i] % device_count()), first[i]});
  return std::make_unique<PipelineBackend>(std::move(stages));
}

// Small matrices: a split costs two stories of some twenty passes.
TinyShape small(int n_layer) {
  TinyShape shape;
  shape.n_embd = shape.n_ff = 64;
  shape.n_head = 2;
  shape.n_head_kv = 1;
  shape.n_layer = n_layer;
  return shape;
}

struct Case {
  TinyModel tiny;
  MemoryFile file;
  std::vector<float> decoded, prefilled;
};

// A shorter story than Runner's: a prompt, at once or token by token, two sequences together, one step back, another
// token, and a pass without logits before the last.
std::vector<float> tell(const Case& c, Backend& backend, bool prefill) {
  Runner runner(c.tiny, c.file.path(), backend);
  std::vector<float> logits;
  const auto a = runner.make_cache(KvType::F32, KvType::F32), b = runner.make_cache(KvType::F32, KvType::F32);
  if (prefill) {
    runner.forward({a.get()}, {{1, 7, 39}}, logits);
  } else {
    for (const int32_t token : {1, 7, 39}) runner.forward({a.get()}, {{token}}, logits);
  }
  runner.forward({b.get()}, {{5}}, logits);
  runner.forward({a.get(), b.get()}, {{3}, {4}}, logits);
  a->truncate(a->n_past() - 1);
  runner.forward({a.get()}, {{12, 13}}, logits, false);
  runner.forward({a.get()}, {{11}}, logits);
  return logits;
}

// One sequence's residual streams, of every layer.
std::vector<float> residuals(const Case& c, Backend& backend) {
  models::ModelSource source({c.file.path()}, c.tiny.tensors, c.tiny.metadata);
  const auto model = models::make_model(source, backend);
  const models::Hyperparameters& h = model->hyperparameters();
  const auto cache =
      backend.make_cache({h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, 16, KvType::F32, KvType::F32});
  Batch batch;
  batch.tokens = {3, 1, 4, 1, 5};
  batch.positions = {0, 1, 2, 3, 4};
  batch.spans = {{cache.get(), 0, 5}};
  std::vector<float> streams(size_t(h.n_layer + 1) * 5 * size_t(h.n_embd));
  batch.residuals = streams.data();
  model->forward(batch, nullptr, {});
  return streams;
}

void check_split(const Case& c, const std::string& name, const std::vector<int>& devices,
                 const std::vector<int>& first) {
  // test_model.cpp says where these bounds come from.
  constexpr double kActivations = 1e-3, kHalves = 1e-2;
  const auto backend = make_pipeline(devices, first);
  const double decoded = worst_difference(tell(c, *backend, false), c.decoded);
  const double prefilled = worst_difference(tell(c, *backend, true), c.prefilled);
  std::printf("%s: the largest differences are %.2g and %.2g of the logits' RMS\n", name.c_str(), decoded, prefilled);
  CHECK(decoded <= kActivations, "%s: decoding, logits differ by %g", name.c_str(), decoded);
  CHECK(prefilled <= kHalves, "%s: prefill, logits differ by %g", name.c_str(), prefilled);
}

void check_splits(bool tied) {
  Case c{make_tiny(small(3), formats::TypeId::Q4_0), {}, {}, {}};
  if (tied) std::erase_if(c.tiny.tensors, [](const models::TensorEntry& t) { return t.name == "output.weight"; });
  CHECK(c.file.write(c.tiny.bytes));
  const auto cpu = make_cpu();
  c.decoded = tell(c, *cpu, false);
  c.prefilled = tell(c, *cpu, true);
  const std::string what = tied ? "tied, " : "";
  for (int n = 1; n <= 3; ++n) check_split(c, what + "-ngl " + std::to_string(n), {-1, 0}, {0, 4 - n});
  check_split(c, what + "-ngl 4", {0}, {0});
  check_split(c, what + "two GPUs", {0, 1}, {0, 1});
  if (tied) return;
  check_split(c, "the CPU and three GPUs, the last with the output", {-1, 0, 1, 2}, {0, 1, 2, 3});
  check_split(c, "GPUs in another order", {2, 0}, {0, 2});
  const std::vector<float> expected = residuals(c, *cpu);
  const double worst = worst_difference(residuals(c, *make_pipeline({-1, 1, 0}, {0, 1, 2})), expected);
  CHECK(worst <= 1e-2, "residual streams differ by %g", worst);
}

// A step across a border still becomes a graph on each GPU.
void check_graphs() {
  const TinyFile tiny(small(2), formats::TypeId::Q8_0);
  auto first = std::make_unique<CudaBackend>(0), second = std::make_unique<CudaBackend>(1 % device_count());
  const CudaBackend &a = *first, &b = *second;
  std::vector<PipelineBackend::Stage> stages;
  stages.push_back({std::move(first), 0});
  stages.push_back({std::move(second), 1});
  PipelineBackend pipeline(std::move(stages));
  Runner(tiny, pipeline).story(KvType::F16, KvType::F16, true);
  CHECK(a.n_graphs() > 0 && b.n_graphs() > 0, "graphs of two GPUs: %d and %d", a.n_graphs(), b.n_graphs());
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  cuda::emulation::set_seed(1);
  cuda::emulation::set_device_count(3);
  cuda::test::check_splits(false);
  cuda::test::check_splits(true);
  cuda::test::check_graphs();
  for (int i = 0; i < 3; ++i)
    CHECK(cuda::emulation::device_traits(i).used_bytes == 0, "memory of device %d leaks: %lld bytes", i,
          static_cast<long long>(cuda::emulation::device_traits(i).used_bytes));
  return test::failures("test_pipeline");
}
