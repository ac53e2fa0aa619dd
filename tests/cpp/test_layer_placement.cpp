// Layers on GPUs of given free memory: llama.cpp's conventions for numbers of layers and shares, what fits by itself,
// and what is said where something does not fit.
#include "layer_placement.h"

#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"

namespace gristmill::test {
namespace {

constexpr int64_t kGiB = int64_t{1} << 30;
constexpr int kLayers = 4;

// Four layers of 1 GiB, an embedding and an output of half a GiB; 1 GiB of cache a layer for 4096 positions.
ModelBytes make_model(bool tied = false) {
  ModelBytes m;
  m.layers.assign(kLayers, kGiB);
  m.embedding = kGiB / 2;
  m.output = kGiB / 2;
  m.tied = tied;
  m.n_ctx = 4096;
  m.cache = [](int n_layer, int64_t n_ctx) { return n_layer * n_ctx * (kGiB / 4096); };
  m.work = kGiB / 4;
  m.logits = kGiB / 4;
  return m;
}

std::vector<GpuMemory> gpus(std::vector<double> free_gib) {
  std::vector<GpuMemory> all;
  for (size_t i = 0; i < free_gib.size(); ++i)
    all.push_back({"cuda:" + std::to_string(i), int64_t(free_gib[i] * double(kGiB))});
  return all;
}

// "cpu 2 | 0: 2-4 | 1: 4-5", or the error.
std::string place(std::vector<double> free_gib, PlacementRequest request, const ModelBytes& model = make_model()) {
  const auto memory = gpus(std::move(free_gib));
  Placement p;
  try {
    p = place_layers(model, memory, request);
  } catch (const DeviceError& e) {
    return e.what();
  }
  std::string text = "cpu " + std::to_string(kLayers + 1 - p.n_gpu_layers());
  for (const Placement::Range& r : p.ranges)
    text += " | " + std::to_string(r.gpu) + ": " + std::to_string(r.first) + "-" + std::to_string(r.last);
  return text;
}

void expect(const std::string& got, const std::string& wanted) {
  CHECK(got == wanted, "\n  got    %s\n  wanted %s", got.c_str(), wanted.c_str());
}

void expect_part(const std::string& got, const std::string& part) {
  CHECK(got.find(part) != std::string::npos, "\n  got    %s\n  wanted %s", got.c_str(), part.c_str());
}

void check_numbers() {
  expect(place({100}, {.n_gpu_layers = 0}), "cpu 5");
  expect(place({100}, {.n_gpu_layers = 1}), "cpu 4 | 0: 4-5");  // the output comes first
  expect(place({100}, {.n_gpu_layers = 2}), "cpu 3 | 0: 3-5");
  expect(place({100}, {.n_gpu_layers = 4}), "cpu 1 | 0: 1-5");
  expect(place({100}, {.n_gpu_layers = 5}), "cpu 0 | 0: 0-5");
  expect(place({100}, {.n_gpu_layers = 99}), "cpu 0 | 0: 0-5");
}

// Output with its logits and work space: 1 GiB; each layer with its cache 2 GiB; the embedding half a GiB.
void check_what_fits() {
  expect(place({0.99}, {}), "cpu 5");
  expect(place({1.0}, {}), "cpu 4 | 0: 4-5");
  expect(place({2.99}, {}), "cpu 4 | 0: 4-5");
  expect(place({3.0}, {}), "cpu 3 | 0: 3-5");
  expect(place({9.49}, {}), "cpu 1 | 0: 1-5");
  expect(place({9.5}, {}), "cpu 0 | 0: 0-5");
  expect(place({9.0}, {}, make_model(true)), "cpu 0 | 0: 0-5");  // one matrix serves both ends
  expect(place({8.99}, {}, make_model(true)), "cpu 1 | 0: 1-5");
  ModelBytes half = make_model();
  half.n_ctx = 2048;
  expect(place({2.5}, {}, half), "cpu 3 | 0: 3-5");
}

void check_several() {
  expect(place({100, 100}, {}), "cpu 0 | 0: 0-5");  // one is enough
  expect(place({100, 100}, {.main_gpu = 1}), "cpu 0 | 1: 0-5");
  expect(place({100, 100}, {.tensor_split = {1, 1}}), "cpu 0 | 0: 0-3 | 1: 3-5");
  expect(place({100, 100}, {.tensor_split = {0, 3}}), "cpu 0 | 1: 0-5");
  expect(place({100, 100}, {.tensor_split = {2}}), "cpu 0 | 0: 0-5");
  expect(place({100, 100, 100}, {.tensor_split = {3, 1, 1}}), "cpu 0 | 0: 0-3 | 1: 3-4 | 2: 4-5");
  expect(place({100, 100}, {.n_gpu_layers = 2, .tensor_split = {1, 1}}), "cpu 3 | 0: 3-4 | 1: 4-5");
  // None is enough alone: by free memory, here 6.75 and 3.25 beside the work space.
  expect(place({7, 3.5}, {}), "cpu 0 | 0: 0-3 | 1: 3-5");  // 4 and 1 in proportion, which does not fit
  expect(place({7, 6}, {}), "cpu 0 | 0: 0-3 | 1: 3-5");
  expect(place({3, 3}, {}), "cpu 2 | 0: 2-3 | 1: 3-5");
  expect(place({0.2, 9.5, 3}, {.main_gpu = 2}), "cpu 0 | 1: 0-4 | 2: 4-5");
  expect_part(place({0.1, 0.2}, {.n_gpu_layers = 1, .main_gpu = 1}), "cuda:1 has 0.20 GiB free and the output needs");
}

void check_errors() {
  const std::string one = place({2.0}, {.n_gpu_layers = 2});
  expect(one,
         "[device] cuda:0 has 2.00 GiB free and layer 3 and the output need 3.00 GiB (weights 1.50 GiB, cache for 4096 "
         "positions 1.00 GiB, work space 0.50 GiB): 1.00 GiB are missing; -ngl 1 would fit");
  // 2 GiB hold the output and layer 3 with a quarter of a GiB of cache.
  expect_part(place({2.25}, {.n_gpu_layers = 2}), "0.75 GiB are missing; -ngl 1 or --ctx-size 1024 would fit");
  expect_part(place({9}, {.n_gpu_layers = 99}), "the model needs 9.50 GiB");
  expect_part(place({9}, {.n_gpu_layers = 99}), "0.50 GiB are missing; -ngl 4 or --ctx-size 3584 would fit");
  expect_part(place({0.5}, {.n_gpu_layers = 3}), "-ngl 0 runs it on the CPU");
  const std::string second = place({20, 2}, {.n_gpu_layers = 5, .tensor_split = {1, 1}});
  expect_part(second, "[device] cuda:1 has 2.00 GiB free and layer 3 and the output need 3.00 GiB");
  const std::string first = place({2, 20}, {.n_gpu_layers = 5, .tensor_split = {1, 1}});
  expect_part(first, "[device] cuda:0 has 2.00 GiB free and layers 0 to 2 need 6.75 GiB");
}

void check_why_not_more() {
  const ModelBytes model = make_model();
  const auto memory = gpus({3.5});
  const Placement p = place_layers(model, memory, {});
  CHECK(p.n_gpu_layers() == 2);
  expect_part(why_not_more(model, memory, {}, p),
              "cuda:0 has 3.50 GiB free and layers 2 to 3 and the output need 5.00 GiB");
  // Four layers, embedding, output, work space and logits are 5.5 GiB; half a GiB more is a cache of 512 positions.
  CHECK(context_for_all(model, memory, {}) == 0);
  CHECK(context_for_all(model, gpus({5.5}), {}) == 0);
  CHECK(context_for_all(model, gpus({6}), {}) == 512);
  const auto plenty = gpus({100});
  CHECK(why_not_more(model, plenty, {}, place_layers(model, plenty, {})).empty());
}

}  // namespace
}  // namespace gristmill::test

int main() {
  using namespace gristmill::test;
  check_numbers();
  check_what_fits();
  check_several();
  check_errors();
  check_why_not_more();
  return failures("test_layer_placement");
}
