// What a backend's buffers are promised to take of the device's memory, against what they take.
#include "cuda/pass_buffers.h"

#include <numeric>
#include <vector>

#include "check.h"
#include "cuda/cuda_backend.h"
#include "device_under_test.h"
#include "model_runner.h"
#include "models/blocks.h"

namespace gristmill::cuda::test {
namespace {

int64_t float_bytes(int64_t n) { return allocated_bytes(n * int64_t(sizeof(float))); }

void check_promise(KvType type) {
  constexpr int kRows = 34, kTogether = 2;
  TinyShape shape;
  shape.n_layer = 2;
  shape.n_ff = 512;
  const TinyFile tiny(shape, formats::TypeId::Q4_0);
  emulation::DeviceTraits& traits = emulation::device_traits();
  CudaBackend device(0);
  Runner runner(tiny, device);
  const auto a = runner.make_cache(type, type), b = runner.make_cache(type, type);
  device.begin({});  // the buffers of loading go
  const int64_t model = traits.used_bytes;
  traits.peak_bytes = model;
  std::vector<int32_t> prompt(kRows);
  std::iota(prompt.begin(), prompt.end(), 2);
  std::vector<float> logits;
  runner.forward({a.get()}, {{1}}, logits);
  runner.forward({a.get()}, {prompt}, logits);
  runner.forward({b.get()}, {{1}}, logits);
  runner.forward({a.get(), b.get()}, {{3}, {4}}, logits);
  // Nobody waits for the results of these: the second must wait before it changes what the first is still sending.
  runner.forward({b.get()}, {{5}}, logits, 0);
  runner.forward({b.get()}, {{6}}, logits, 0);

  const models::Hyperparameters& h = runner.hyperparameters();
  int64_t activations = float_bytes(models::kHeadRows * h.n_embd) + float_bytes(models::kHeadRows * h.n_vocab);
  for (const int64_t width : models::activation_widths(h)) activations += float_bytes(kRows * width);
  const int64_t promised = pass_bytes(
      {h.n_embd, h.n_ff, h.n_vocab, a->shape(), h.n_head, kRows, kTogether, models::kHeadRows}, device.device());
  const int64_t taken = traits.peak_bytes - model - activations;
  CHECK(taken <= promised, "%lld bytes were promised to be enough, %lld were taken", static_cast<long long>(promised),
        static_cast<long long>(taken));
  // Nobody asked for the largest logits, for which there is room.
  const int64_t unused = allocated_bytes(int64_t(top_words(models::kHeadRows, 1024) * sizeof(int32_t))) + (1 << 20);
  CHECK(promised - taken <= unused, "%lld bytes were promised, %lld taken", static_cast<long long>(promised),
        static_cast<long long>(taken));
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  cuda::emulation::set_seed(1);
  cuda::test::check_promise(KvType::F16);
  cuda::test::check_promise(KvType::Q8_0);
  return test::failures("test_pass_buffers");
}
