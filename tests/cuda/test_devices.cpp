// The engine on emulated GPUs, asked as a user asks: which layers go where, what is said where memory is short, and the
// largest logits in place of all.
#include <algorithm>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cuda_library.h"
#include "device_under_test.h"
#include "engine.h"
#include "model_runner.h"

extern "C" const gristmill::cuda::Entry* gristmill_cuda_entry();

namespace gristmill::cuda::test {
namespace {

constexpr int64_t kMiB = 1 << 20;
const std::vector<int32_t> kPrompt = {1, 7, 39, 0, 7, 22, 13};

struct Model {
  TinyModel tiny;
  MemoryFile file;

  explicit Model(int n_layer) {
    TinyShape shape;
    shape.n_embd = shape.n_ff = 64;
    shape.n_head = 2;
    shape.n_head_kv = 1;
    shape.n_layer = n_layer;
    tiny = make_tiny(shape, formats::TypeId::Q4_0);
    CHECK(file.write(tiny.bytes));
  }
  Engine load(const EngineOptions& options) const {
    return Engine(models::ModelSource({file.path()}, tiny.tensors, tiny.metadata), options);
  }
};

EngineOptions options(const std::string& device) {
  EngineOptions o{64, 1, KvType::F16, KvType::F16, "scalar", true, device};
  return o;
}

std::string layers_of(const Engine& engine) {
  std::string text;
  for (const DeviceLayers& l : engine.device_layers())
    text += (text.empty() ? "" : ", ") + l.name.substr(0, l.name.find(' ')) + " " + std::to_string(l.first) + "-" +
            std::to_string(l.last);
  return text;
}

std::string error_of(const Model& model, const EngineOptions& o) {
  try {
    model.load(o);
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing was thrown";
}

void expect(const std::string& got, const std::string& wanted) {
  CHECK(got == wanted, "\n  got    %s\n  wanted %s", got.c_str(), wanted.c_str());
}
void expect_part(const std::string& got, const std::string& part) {
  CHECK(got.find(part) != std::string::npos, "\n  got    %s\n  wanted %s", got.c_str(), part.c_str());
}

std::vector<float> logits_of(Engine& engine) {
  const auto cache = engine.make_cache();
  std::vector<float> logits(kPrompt.size() * size_t(engine.hyperparameters().n_vocab));
  engine.forward(*cache, kPrompt, LogitsOf::kAll, logits.data());
  return logits;
}

void check_placements(const Model& model) {
  Engine cpu = model.load(options("cpu"));
  expect(layers_of(cpu), "cpu 0-4");
  CHECK(!cpu.finds_top_logits());
  const std::vector<float> expected = logits_of(cpu);
  const auto check = [&](const EngineOptions& o, const std::string& layers) {
    Engine engine = model.load(o);
    expect(layers_of(engine), layers);
    CHECK(engine.device_note().empty(), "%s", engine.device_note().c_str());
    const double worst = worst_difference(logits_of(engine), expected);
    CHECK(worst <= 2e-2, "%s: logits differ by %g", layers.c_str(), worst);
  };
  check(options("auto"), "cuda:0 0-4");
  check(options("cuda:1"), "cuda:1 0-4");
  EngineOptions o = options("cuda");
  o.n_gpu_layers = 2;
  check(o, "cpu 0-2, cuda:0 2-4");
  o.main_gpu = 1;
  check(o, "cpu 0-2, cuda:1 2-4");
  o.n_gpu_layers = 99;
  o.tensor_split = {1, 3};
  check(o, "cuda:0 0-1, cuda:1 1-4");
  o.device = "cuda:1,cuda:0";
  check(o, "cuda:1 0-1, cuda:0 1-4");
  o.n_gpu_layers = 0;
  check(o, "cpu 0-4");
}

void check_refusals(const Model& model) {
  const auto refuse = [&](EngineOptions o, const std::string& part) { expect_part(error_of(model, o), part); };
  refuse(options("gpu"), "[device] name, expected auto, cpu, cuda, or cuda:N");
  refuse(options("cuda:"), "[device] name, expected");
  refuse(options("cuda:0,"), "[device] name, expected");
  refuse(options("cuda:2"), "[device] cuda:2 is not there: there are 2 GPUs");
  refuse(options("cuda:0,cuda:0"), "[device] cuda:0 is given twice");
  EngineOptions o = options("cuda:1");
  o.main_gpu = 0;
  refuse(o, "[device] the main GPU cuda:0 is not among the 1 of cuda:1");
  o = options("cuda");
  o.tensor_split = {1, 1, 1};
  refuse(o, "[device] tensor split, expected at most 2 shares");
  o.tensor_split = {0, 0};
  refuse(o, "[device] tensor split, expected a share above 0");
}

// A matrix and a cache take what the placement counts for them, to the byte.
void check_counts() {
  const Entry& entry = *gristmill_cuda_entry();
  const auto backend = entry.make_backend(0);
  const int64_t& used = emulation::device_traits(0).used_bytes;
  const formats::FormatInfo& format = *formats::find_format(uint32_t(formats::TypeId::Q8_0));
  for (const int64_t n_rows : {100, 1100}) {  // below the size from which whole pages are taken, and above
    const Weight rows{&format, nullptr, n_rows, 1024};
    const std::vector<std::byte> file(size_t(n_rows * rows.row_bytes()));
    const int64_t before = used;
    backend->upload_matrix({&format, file.data(), n_rows, 1024});
    backend->begin({});  // the buffers of loading go
    CHECK(used - before == entry.matrix_bytes(format.id, n_rows, 1024), "%lld bytes of a matrix of %lld rows",
          static_cast<long long>(used - before), static_cast<long long>(n_rows));
    const KvShape shape{1, 2, 64, 64, n_rows * 4, KvType::F16, KvType::F16};
    const int64_t without = used;
    const auto cache = backend->make_cache(shape);
    CHECK(used - without == entry.cache_bytes(shape), "%lld bytes of a cache", static_cast<long long>(used - without));
  }
}

// An upload for which there is no memory, then one for which there is.
void check_failed_upload() {
  const auto backend = gristmill_cuda_entry()->make_backend(0);
  emulation::DeviceTraits& traits = emulation::device_traits(0);
  const formats::FormatInfo& format = *formats::find_format(uint32_t(formats::TypeId::Q8_0));
  const Weight shape{&format, nullptr, 1100, 1024};
  const std::vector<std::byte> file(size_t(shape.n_rows * shape.row_bytes()));
  const Weight weight{&format, file.data(), shape.n_rows, shape.n_cols};
  const int64_t before = traits.memory_bytes;
  traits.memory_bytes = traits.used_bytes + 4 * kMiB;  // for the tiles, and not for what they pass through
  bool failed = false;
  try {
    backend->upload_matrix(weight);
  } catch (const DeviceError&) {
    failed = true;
  }
  traits.memory_bytes = before;
  CHECK(failed && backend->upload_matrix(weight));
}

size_t gpu_layers(const Engine& engine) {
  const DeviceLayers& last = engine.device_layers().back();
  return last.gpu < 0 ? 0 : size_t(last.last - last.first);
}

// For every number of layers the least memory that they are placed in, to the byte. What is placed runs there, and even
// without what is spared for things that nobody counts.
void check_memory(const Model& model) {
  constexpr int64_t kSpare = 256 * kMiB, kPage = 2 * kMiB;
  emulation::DeviceTraits &first = emulation::device_traits(0), &second = emulation::device_traits(1);
  const int64_t before = first.memory_bytes;
  first.memory_bytes = second.memory_bytes = kSpare;
  EngineOptions o = options("cuda");
  expect_part(error_of(model, o), "[device] cuda:0 (host emulation) has 0.25 GiB free and the output needs");
  o.n_gpu_layers = 99;
  expect_part(error_of(model, o), "-ngl 0 runs it on the CPU");
  Engine none = model.load(options("auto"));
  expect(layers_of(none), "cpu 0-4");
  expect_part(none.device_note(), "cuda:0 (host emulation) has 0.25 GiB free");

  second.memory_bytes = 0;
  const auto layers_in = [&](int64_t bytes) {
    first.memory_bytes = bytes;
    return gpu_layers(model.load(options("auto")));
  };
  int64_t least = kSpare;
  for (size_t n = 1; n <= 4; ++n) {
    int64_t high = 2 * kSpare + 512 * kMiB;
    while (high - least > 1) {
      const int64_t middle = (least + high) / 2;
      (layers_in(middle) >= n ? high : least) = middle;
    }
    least = high;
    CHECK(layers_in(least - 1) == n - 1 && layers_in(least) == n, "layer %zu at %lld bytes", n,
          static_cast<long long>(least));
    first.peak_bytes = 0;
    Engine engine = model.load(options("auto"));
    CHECK((n == 4) == engine.device_note().empty(), "%zu layers: %s", n, engine.device_note().c_str());
    logits_of(engine);
    // With layers nearly all of it is used; the output alone makes no halves of weights.
    CHECK(first.peak_bytes <= least - kSpare && (n == 1 || first.peak_bytes > least - kSpare - 8 * kPage),
          "%zu layers take %lld bytes of %lld", n, static_cast<long long>(first.peak_bytes),
          static_cast<long long>(least));
  }
  first.memory_bytes = second.memory_bytes = before;
}

// Asking a GPU for its memory takes some of it: only those that could be needed are asked, and one that fails is not
// used.
void check_who_is_asked(const Model& model) {
  emulation::DeviceTraits &first = emulation::device_traits(0), &second = emulation::device_traits(1);
  first.times_asked = second.times_asked = 0;
  expect(layers_of(model.load(options("auto"))), "cuda:0 0-4");
  CHECK(first.times_asked > 0 && second.times_asked == 0, "asked: %d and %d times", first.times_asked,
        second.times_asked);
  first.fails = true;
  expect(layers_of(model.load(options("auto"))), "cuda:1 0-4");
  expect_part(error_of(model, options("cuda:0")), "the device is busy or unavailable) has 0.0 MiB free");
  second.fails = true;
  const Engine engine = model.load(options("auto"));
  expect(layers_of(engine), "cpu 0-4");
  expect_part(engine.device_note(), "the device is busy or unavailable");
  CHECK(devices().size() == 2 && devices()[1].memory_bytes == 0);
  first.fails = second.fails = false;
}

// Asking a GPU, loading and running touch no other one: it may be full, or another process' alone.
void check_contexts(const Model& model) {
  emulation::DeviceTraits &first = emulation::device_traits(0), &second = emulation::device_traits(1);
  second.has_context = false;
  set_device(0);
  first.has_context = false;
  Engine engine = model.load(options("cuda:1"));
  logits_of(engine);
  CHECK(second.has_context && !first.has_context, "a context on a GPU that is not used");
  // A session may end on any thread, whose current device is the first.
  std::thread([&, cache = engine.make_cache()]() mutable {
    second.has_context = false;
    cache.reset();
  }).join();
  CHECK(second.has_context && !first.has_context, "a cache was freed with another device current");
  // And memory where a longer pass wants more of it.
  set_device(0);
  first.has_context = false;
  const auto cache = engine.make_cache();
  engine.forward(*cache, std::vector<int32_t>(20, 3), LogitsOf::kNone, nullptr);
  CHECK(!first.has_context, "buffers were freed with another device current");
}

// A GPU for which there is no code is one without free memory: only who names it gets an error.
void check_unusable(const Model& model) {
  emulation::DeviceTraits &first = emulation::device_traits(0), &second = emulation::device_traits(1);
  const auto check = [&](const std::string& why) {
    expect(layers_of(model.load(options("auto"))), "cuda:1 0-4");
    expect(layers_of(model.load(options("cuda"))), "cuda:1 0-4");
    expect(error_of(model, options("cuda:0")), "[device] cuda:0 cannot be used: host emulation: " + why);
    expect(error_of(model, options("cuda:0,cuda:1")), "[device] cuda:0 cannot be used: host emulation: " + why);
    CHECK(devices()[0].free_bytes == 0 && devices()[0].memory_bytes > 0);
    expect_part(devices()[0].name, why);
    second.fails = true;
    const Engine engine = model.load(options("auto"));
    expect(layers_of(engine), "cpu 0-4");
    expect_part(engine.device_note(), why);
    second.fails = false;
    std::string what;
    try {
      gristmill_cuda_entry()->make_backend(0);
    } catch (const DeviceError& e) {
      what = e.what();
    }
    expect(what, "[cuda:0] host emulation cannot be used: " + why);
  };
  first.major = 7;
  first.minor = 5;
  check("compute capability 7.5, expected at least 8.0");
  first.major = 9;
  first.minor = 0;
  first.has_code = false;
  check("this build has no code for it: no kernel image");
  first.has_code = true;
}

// Types of caches that only the plain kernel takes.
void check_slow(const Model& model) {
  const auto slow = [&](KvType k, KvType v, int n_gpu_layers) {
    EngineOptions o = options("cuda");
    o.type_k = k;
    o.type_v = v;
    o.n_gpu_layers = n_gpu_layers;
    return model.load(o).device_slow();
  };
  constexpr KvType kF16 = KvType::F16, kQ8 = KvType::Q8_0, kF32 = KvType::F32;
  const std::string shapes = "attention over keys of f16 in heads of 32 and values of f16 in heads of 32 is slow on a";
  expect_part(slow(kF16, kF16, 99), shapes);  // the model's heads
  expect(slow(kF16, kF16, 0), "");
  expect(slow(kF16, kF16, 1), "");
  TinyShape shape;
  shape.n_head = 4;
  shape.n_head_kv = 2;  // heads of 64
  Model wide(1);
  wide.tiny = make_tiny(shape, formats::TypeId::Q4_0);
  CHECK(wide.file.write(wide.tiny.bytes));
  const auto wide_slow = [&](KvType k, KvType v) {
    EngineOptions o = options("cuda");
    o.type_k = k;
    o.type_v = v;
    return wide.load(o).device_slow();
  };
  expect(wide_slow(kF16, kF16), "");
  expect(wide_slow(kQ8, kQ8), "");
  expect_part(wide_slow(kF16, kQ8),
              "keys of f16 in heads of 64 and values of q8_0 in heads of 64 is slow on a GPU; fast");
  expect_part(wide_slow(kF32, kF32), "keys of f32");
}

// What a kernel or an allocation of a device reports names it.
void check_device_is_named(const Model& model) {
  Engine engine = model.load(options("cuda:1"));
  emulation::device_traits(1).memory_bytes = emulation::device_traits(1).used_bytes;
  std::string what;
  try {
    engine.make_cache();
  } catch (const DeviceError& e) {
    what = e.what();
  }
  emulation::device_traits(1).memory_bytes = int64_t{1} << 30;
  expect_part(what, "[cuda:1] cudaMalloc of ");
  logits_of(engine);  // and the engine is usable as before
}

void check_top_logits(const Model& model, const EngineOptions& o) {
  Engine engine = model.load(o);
  CHECK(engine.finds_top_logits());
  const int64_t n_row = engine.hyperparameters().n_vocab;
  constexpr int kTop = 5, kVocab = 37;
  const auto a = engine.make_cache(), b = engine.make_cache(), c = engine.make_cache(), d = engine.make_cache();
  std::vector<float> all(size_t(2 * n_row));
  engine.forward(*a, kPrompt, LogitsOf::kLast, all.data());
  engine.forward(*c, std::vector<int32_t>{4, 5}, LogitsOf::kNone, nullptr);
  engine.forward(*d, std::vector<int32_t>{4, 5}, LogitsOf::kNone, nullptr);
  std::vector<int32_t> ids(2 * kTop), finite(2);
  std::vector<float> values(2 * kTop);
  const TopLogits top{kTop, kVocab, ids.data(), values.data(), finite.data()};
  engine.forward(*b, kPrompt, LogitsOf::kLast, nullptr, {}, nullptr, &top);
  const auto same = [&](size_t n_rows, const char* when) {
    for (size_t row = 0; row < n_rows; ++row) {
      const float* logits = all.data() + row * size_t(n_row);
      std::vector<int32_t> order(kVocab);
      std::iota(order.begin(), order.end(), 0);
      std::ranges::stable_sort(order, [&](int32_t x, int32_t y) { return logits[x] > logits[y]; });
      for (size_t i = 0; i < kTop; ++i)
        CHECK(ids[row * kTop + i] == order[i] && values[row * kTop + i] == logits[order[i]],
              "%s, row %zu, place %zu: token %d, not %d", when, row, i, ids[row * kTop + i], order[i]);
    }
  };
  same(1, "prompt");
  for (int step = 0; step < 4; ++step) {  // run, captured, replayed
    const std::vector<int32_t> tokens = {3 + step, 9};
    engine.decode(std::vector<KvCache*>{a.get(), c.get()}, tokens, all.data());
    engine.decode(std::vector<KvCache*>{b.get(), d.get()}, tokens, nullptr, &top);
    same(2, "step");
  }
}

void check_top_logits_refused(const Model& model) {
  Engine engine = model.load(options("cuda"));
  const auto cache = engine.make_cache();
  int32_t ids[64], finite = 0;
  float values[64];
  const auto refused = [&](int k, int64_t n_vocab) {
    const TopLogits top{k, n_vocab, ids, values, &finite};
    try {
      engine.forward(*cache, kPrompt, LogitsOf::kLast, nullptr, {}, nullptr, &top);
    } catch (const ArgumentError&) {
      return true;
    }
    return false;
  };
  CHECK(refused(0, 40) && refused(41, 40) && refused(5, 41) && refused(1, 0));
  CHECK(cache->n_past() == 0);
}

// A prompt that may be given up between layers is under way there, and its logits have the same bits.
void check_between_layers() {
  const Model model(12);
  const int& launches = emulation::device_traits(0).launches;
  Engine engine = model.load(options("cuda:0"));
  const std::vector<int32_t> prompt(20, 3);
  const auto forward = [&](const std::function<void()>& between_layers) {
    std::vector<float> logits(size_t(engine.hyperparameters().n_vocab));
    engine.forward(*engine.make_cache(), prompt, LogitsOf::kLast, logits.data(), between_layers);
    return logits;
  };
  const std::vector<float> expected = forward({});
  std::vector<int> seen;
  const int before = launches;
  CHECK(forward([&] { seen.push_back(launches - before); }) == expected, "other logits");
  CHECK(seen.size() == 12 && seen[3] < seen[5] && seen[7] < seen[9] && seen[11] > (launches - before) / 2,
        "launches before the layers: %d, %d, %d, %d; %d in all", seen[3], seen[5], seen[9], seen[11],
        launches - before);
  bool given_up = false;
  int layer = 0;
  try {
    forward([&] {
      if (++layer == 7) throw Error("given up");
    });
  } catch (const Error&) {
    given_up = true;
  }
  CHECK(given_up && forward({}) == expected, "a pass after one that was given up");
}

void check_progress(const Model& model) {
  EngineOptions o = options("cuda");
  std::vector<int64_t> done;
  int64_t all = 0;
  o.progress = [&](int64_t n, int64_t total) {
    done.push_back(n);
    all = total;
  };
  model.load(o);
  CHECK(done.size() > 3 && done.front() == 0 && std::ranges::is_sorted(done) && done.back() == all && all > 0);
  const int64_t used = emulation::device_traits().used_bytes;
  o.progress = [](int64_t n, int64_t) {
    if (n > 0) throw Error("given up");
  };
  expect(error_of(model, o), "given up");
  CHECK(emulation::device_traits().used_bytes == used, "a load that was given up leaks");
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  using namespace gristmill::cuda::test;
  cuda::emulation::set_seed(1);
  cuda::emulation::set_device_count(2);
  cuda::use_entry(gristmill_cuda_entry());
  {
    const Model model(3);
    check_placements(model);
    check_refusals(model);
    check_counts();
    check_failed_upload();
    check_memory(model);
    check_who_is_asked(model);
    check_unusable(model);
    check_slow(model);
    check_contexts(model);
    check_device_is_named(model);
    check_top_logits(model, options("cuda"));
    EngineOptions o = options("cuda");
    o.n_gpu_layers = 2;
    check_top_logits(model, o);
    check_top_logits_refused(model);
    check_between_layers();
    check_progress(model);
  }
  for (int i = 0; i < 2; ++i)
    CHECK(cuda::emulation::device_traits(i).used_bytes == 0, "memory of device %d leaks: %lld bytes", i,
          static_cast<long long>(cuda::emulation::device_traits(i).used_bytes));
  return test::failures("test_devices");
}
