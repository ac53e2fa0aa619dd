// The back end as the package has it: a library of its own that is opened by name, with nothing of it linked here. The
// emulated one, or the real one on a GPU.
//   test_library            opens GRISTMILL_TEST_LIBRARY
//   test_library wrong_switch    expects GRISTMILL_CUDA_SYNC=yes
//   test_library refused    expects GRISTMILL_CUDA_LIBRARY to name one that finds no GPU
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cuda_library.h"
#include "engine.h"
#include "tiny_model.h"

namespace gristmill::cuda::test {
namespace {

using gristmill::test::make_tiny;
using gristmill::test::MemoryFile;
using gristmill::test::TinyModel;
using gristmill::test::TinyShape;

struct Model {
  TinyModel tiny = make_tiny({.n_layer = 2}, formats::TypeId::Q4_0);
  MemoryFile file;

  Model() { CHECK(file.write(tiny.bytes)); }
  Engine load(int64_t n_ctx) const {
    EngineOptions options{n_ctx, 1, KvType::F16, KvType::F16, "scalar", true, "cuda"};
    options.n_gpu_layers = 99;  // all, or an error
    return Engine(models::ModelSource({file.path()}, tiny.tensors, tiny.metadata), options);
  }
};

// Greedy, each token from the largest logits, which must be those of all logits.
std::vector<int32_t> generate(Engine& engine) {
  constexpr int kTop = 4;
  const int64_t n_vocab = engine.hyperparameters().n_vocab;
  const auto few = engine.make_cache(), all = engine.make_cache();
  std::vector<float> logits(static_cast<size_t>(n_vocab));
  int32_t ids[kTop], finite = 0;
  float values[kTop];
  const TopLogits top{kTop, n_vocab, ids, values, &finite};
  std::vector<int32_t> tokens = {1, 7, 39, 5}, made;
  for (int step = 0; step < 6; ++step) {
    engine.forward(*few, tokens, LogitsOf::kLast, nullptr, {}, nullptr, &top);
    engine.forward(*all, tokens, LogitsOf::kLast, logits.data());
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
    for (int i = 0; i < kTop; ++i)
      CHECK(ids[i] == order[size_t(i)] && values[i] == logits[size_t(ids[i])], "step %d, place %d: token %d, not %d",
            step, i, ids[i], order[size_t(i)]);
    CHECK(finite == 1);
    tokens = {ids[0]};
    made.push_back(ids[0]);
  }
  return made;
}

// Positions whose keys and values take about this many bytes.
int64_t positions_in(const Entry& entry, const Engine& engine, int64_t bytes) {
  const models::Hyperparameters& h = engine.hyperparameters();
  constexpr int64_t kSome = 1 << 20;
  return bytes * kSome /
         entry.cache_bytes({h.n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, kSome, KvType::F16, KvType::F16});
}

void check_generation() {
  const Entry* entry = cuda::entry();
  CHECK(entry != nullptr, "%s", why_not().c_str());
  if (!entry) return;
  const Model model;
  Engine engine = model.load(64);
  CHECK(engine.device_layers().size() == 1 && engine.device_layers()[0].gpu >= 0);
  const std::vector<int32_t> first = generate(engine);
  CHECK(generate(engine) == first);

  // A context that no memory holds, and one of which a few caches fill it.
  const int index = engine.device_layers()[0].gpu;
  const int64_t free_bytes = entry->device_info(index).free_bytes;
  bool refused = false;
  try {
    model.load(positions_in(*entry, engine, 2 * free_bytes));
  } catch (const DeviceError& e) {
    refused = std::strstr(e.what(), "are missing") != nullptr;
  }
  CHECK(refused, "a cache of twice the memory was not refused");
  refused = false;
  {
    Engine large = model.load(positions_in(*entry, engine, free_bytes / 10 * 3));
    std::vector<std::unique_ptr<KvCache>> caches;
    try {
      for (int i = 0; i < 4; ++i) caches.push_back(large.make_cache());
    } catch (const DeviceError& e) {
      refused = std::strstr(e.what(), "cudaMalloc") != nullptr;
    }
  }
  CHECK(refused, "four caches of three tenths of the memory were made");
  CHECK(generate(engine) == first, "after an allocation that failed");
}

void check_wrong_switch() {
  std::string what;
  try {
    Model().load(64);
  } catch (const Error& e) {
    what = e.what();
  }
  CHECK(what == "[cuda] GRISTMILL_CUDA_SYNC, expected 0 or 1, got yes", "%s", what.c_str());
}

void check_refused() {
  CHECK(entry() == nullptr && devices().empty());
  CHECK(why_not() == "the NVIDIA driver finds no GPU: the driver is too old", "%s", why_not().c_str());
}

}  // namespace
}  // namespace gristmill::cuda::test

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "refused") == 0) {
    gristmill::cuda::test::check_refused();
  } else {
    setenv("GRISTMILL_CUDA_LIBRARY", GRISTMILL_TEST_LIBRARY, 1);
    const bool wrong_switch = argc > 1 && std::strcmp(argv[1], "wrong_switch") == 0;
    wrong_switch ? gristmill::cuda::test::check_wrong_switch() : gristmill::cuda::test::check_generation();
  }
  return gristmill::test::failures("test_library");
}
