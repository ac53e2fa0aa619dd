// A whole model of two layers on the emulated device, through the host code that a GPU runs: its logits against the CPU
// back end's, for prefill, decoding, several sequences together, truncation, and every type of cache.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "cpu/dispatch.h"
#include "cuda/cuda_backend.h"
#include "device_under_test.h"
#include "model_runner.h"

namespace gristmill::cuda::test {
namespace {

// bound: of the largest difference of a logit, in units of the logits' RMS.
void check_model(const TinyShape& shape, formats::TypeId format, KvType type_k, KvType type_v, bool prefill,
                 double bound) {
  const std::string name = shape.architecture + " " + std::string(formats::find_format(uint32_t(format))->name) +
                           " cache " + std::to_string(int(type_k)) + std::to_string(int(type_v)) +
                           (prefill ? " prefill" : " decode");
  const TinyFile tiny(shape, format);
  cpu::CpuBackend cpu(cpu::choose_kernels("scalar"), 1, true);
  CudaBackend device(0);
  const std::vector<float> expected = Runner(tiny, cpu).story(type_k, type_v, prefill);
  const std::vector<float> got = Runner(tiny, device).story(type_k, type_v, prefill);
  const double worst = worst_difference(got, expected);
  std::printf("%s: the largest difference is %.2g of the logits' RMS\n", name.c_str(), worst);
  CHECK(worst <= bound, "%s: logits differ by %g of their RMS", name.c_str(), worst);
  // Steps of two sequences come four times: run, captured, and replayed.
  CHECK(device.n_graphs() > 0, "%s: no step became a graph", name.c_str());
  // The last step decodes: embedding, gathered row, its norm, logits; seven a layer, eight where the attention is the
  // plain one.
  const bool plain = type_k == KvType::F32 || type_k != type_v;
  const size_t most = 4 + size_t(shape.n_layer) * (plain ? 8 : 7);
  CHECK(device.n_commands() <= most, "%s: %zu launches a step, expected %zu", name.c_str(), device.n_commands(), most);
}

// A row's logits are the same however many rows are wanted, also where the head takes them in two parts.
void check_rows(const TinyShape& shape) {
  const TinyFile tiny(shape, formats::TypeId::Q4_0);
  CudaBackend device(0);
  Runner runner(tiny, device);
  std::vector<int32_t> tokens(34);
  std::iota(tokens.begin(), tokens.end(), 2);
  std::vector<float> all, last;
  for (int i = 0; i < 2; ++i) {  // the second pass needs no new buffers, and making one empties the queue
    all.clear();
    runner.forward({runner.make_cache(KvType::F16, KvType::F16).get()}, {tokens}, all);
  }
  runner.forward({runner.make_cache(KvType::F16, KvType::F16).get()}, {tokens}, last, 1);
  CHECK(std::equal(last.begin(), last.end(), all.end() - ptrdiff_t(last.size())),
        "the last of 34 rows has other logits alone");
}

// Equal steps are one list: the second, which finds all buffers made, is the first that can come again.
void check_one_graph(const TinyShape& shape) {
  const TinyFile tiny(shape, formats::TypeId::Q4_0);
  CudaBackend device(0);
  Runner runner(tiny, device);
  const auto cache = runner.make_cache(KvType::F16, KvType::F16);
  std::vector<float> logits;
  for (int step = 1; step <= 6; ++step) {
    runner.forward({cache.get()}, {{step}}, logits);
    CHECK(device.n_graphs() == (step < 3 ? 0 : 1), "step %d: %d graphs", step, device.n_graphs());
  }
}

// A step whose launches failed half-way leaves nothing to the next one: where formats differ, results are finished by
// the last of several launches, and who came is counted.
void check_failed_steps(TinyShape shape) {
  shape.n_layer = 1;
  shape.ffn_up = formats::TypeId::Q8_0;
  const TinyFile tiny(shape, formats::TypeId::Q4_0);
  std::vector<float> expected;
  for (int left = -1;; ++left) {
    CudaBackend device(0);
    if (device.device().name != "host emulation") return;  // a GPU fails when it wants
    Runner runner(tiny, device);
    const auto cache = runner.make_cache(KvType::F16, KvType::F16);
    bool failed = false;
    std::vector<float> logits;
    emulation::device_traits().launches_left = left;
    try {
      runner.forward({cache.get()}, {{7}}, logits);
    } catch (const DeviceError&) {
      failed = true;
      logits.clear();
      runner.forward({cache.get()}, {{7}}, logits);
    }
    emulation::device_traits().launches_left = -1;
    if (left < 0) expected = logits;
    CHECK(logits == expected, "the step after one that failed at its launch %d has other logits", left);
    if (left < 0 || failed) continue;
    CHECK(left > 8, "%d launches a step", left);
    return;
  }
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  using formats::TypeId;
  cuda::emulation::set_seed(1);
  test::TinyShape shape;
  shape.n_layer = 2;
  // Decoding with float weights is the CPU's arithmetic but for the order of float32 sums; with quantized ones, where a
  // sum differs, an activation may round to the next of its 15-bit codes. Prefill rounds weights and activations to 11
  // bits, and a cache of halves turns the smallest difference into one of 2^-11 where it moves a rounding, one of Q8_0
  // into 1/127 of a group's largest; two layers multiply that by about five.
  constexpr double kSums = 2e-5, kActivations = 1e-3, kHalves = 1e-2, kCodes = 6e-2;
  cuda::test::check_model(shape, TypeId::Q4_K, KvType::F32, KvType::F32, false, kActivations);
  cuda::test::check_model(shape, TypeId::Q6_K, KvType::F16, KvType::F16, true, kHalves);
  cuda::test::check_model(shape, TypeId::F16, KvType::F32, KvType::F32, false, kSums);
  cuda::test::check_rows(shape);
  cuda::test::check_one_graph(shape);
  cuda::test::check_failed_steps(shape);
  cuda::emulation::set_seed(2);
  cuda::emulation::device_traits().major = 8;
  cuda::emulation::device_traits().multiprocessors = 2;
  cuda::test::check_model(shape, TypeId::Q4_0, KvType::Q8_0, KvType::Q8_0, true, kCodes);
  shape.architecture = "llama";
  cuda::test::check_model(shape, TypeId::Q8_0, KvType::F32, KvType::F16, true, kHalves);
  CHECK(cuda::emulation::device_traits().used_bytes == 0, "memory of the device leaks: %lld bytes",
        static_cast<long long>(cuda::emulation::device_traits().used_bytes));
  return test::failures("test_model");
}
