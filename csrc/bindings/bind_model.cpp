#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "bindings/bindings.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "cpu/dispatch.h"
#include "cuda_library.h"
#include "engine.h"
#include "machine_limits.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace gristmill::bindings {
namespace {

using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Logits = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
using Residuals = nb::ndarray<nb::numpy, float, nb::ndim<3>>;

std::map<std::string, models::Value> to_metadata(const nb::dict& dict) {
  std::map<std::string, models::Value> values;
  for (const auto& [key, value] : dict) {
    const std::string name = nb::cast<std::string>(key);
    // bool before int: Python's bool is an int.
    if (nb::isinstance<nb::bool_>(value)) {
      values[name] = nb::cast<bool>(value);
    } else if (nb::isinstance<nb::int_>(value)) {
      int64_t n = 0;
      // Nothing a model reads reaches 2^63: the bound stands for what lies above it, and is refused as out of range.
      values[name] = nb::try_cast(value, n) ? n : std::numeric_limits<int64_t>::max();
    } else if (nb::isinstance<nb::float_>(value)) {
      values[name] = nb::cast<double>(value);
    } else if (nb::isinstance<nb::str>(value)) {
      values[name] = nb::cast<std::string>(value);
    } else {
      values[name] = models::ArrayValue{};
    }
  }
  return values;
}

KvType to_kv_type(const std::string& name) {
  if (name == "f32") return KvType::F32;
  if (name == "f16") return KvType::F16;
  if (name == "q8_0") return KvType::Q8_0;
  throw ArgumentError("[kv cache] type, expected f32, f16 or q8_0, got " + name);
}

// Memory of its own for an array that goes to Python.
nb::capsule allocate_floats(size_t n, const char* what, float*& data) {
  data = new (std::nothrow) float[n];
  if (!data) throw DeviceError("[memory] " + std::to_string(n * 4) + " bytes for " + what + " could not be allocated");
  return nb::capsule(data, [](void* p) noexcept { delete[] static_cast<float*>(p); });
}

Logits make_logits(size_t rows, size_t n_vocab, float*& data) {
  const nb::capsule owner = allocate_floats(rows * n_vocab, "logits", data);
  return Logits(data, {rows, n_vocab}, owner);
}

Residuals make_residuals(size_t n_streams, size_t n_tokens, size_t n_embd, float*& data) {
  const nb::capsule owner = allocate_floats(n_streams * n_tokens * n_embd, "residuals", data);
  return Residuals(data, {n_streams, n_tokens, n_embd}, owner);
}

// Memory of the largest logits of some rows, and arrays of it.
struct TopArrays {
  size_t n_rows, k;
  std::vector<int32_t> ids, finite;
  std::vector<float> values;

  TopArrays(size_t rows, int wanted) : n_rows(rows), k(size_t(std::clamp(wanted, 0, Engine::kMostTopLogits))) {
    ids.resize(n_rows * k);
    values.resize(n_rows * k);
    finite.resize(n_rows);
  }
  TopLogits request(int wanted, int64_t n_vocab) { return {wanted, n_vocab, ids.data(), values.data(), finite.data()}; }
  template <class T>
  nb::ndarray<nb::numpy, T, nb::ndim<2>> array(std::vector<T>& values_of) const {
    auto* owned = new std::vector<T>(std::move(values_of));
    const nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
    return {owned->data(), {n_rows, k}, owner};
  }
  auto arrays() { return std::pair{array(ids), array(values)}; }
};

std::span<const int32_t> span_of(const Tokens& tokens) { return {tokens.data(), tokens.size()}; }

// name, type_id, shape (rows first), file_index, offset
using TensorTuple = std::tuple<std::string, uint32_t, std::vector<uint64_t>, int, uint64_t>;

std::shared_ptr<Engine> make_engine(const std::vector<nb::bytes>& paths, const std::vector<TensorTuple>& tensors,
                                    const nb::dict& metadata, int64_t n_ctx, int n_threads,
                                    const std::string& cache_type_k, const std::string& cache_type_v,
                                    const std::string& isa, bool precise, const std::string& device,
                                    std::optional<int> n_gpu_layers, int main_gpu,
                                    const std::vector<double>& tensor_split,
                                    const std::optional<nb::callable>& progress) {
  std::vector<models::TensorEntry> entries;
  for (const auto& [name, type_id, shape, file_index, offset] : tensors)
    entries.push_back({name, type_id, shape, file_index, offset});
  EngineOptions options{
      n_ctx,    n_threads,   to_kv_type(cache_type_k), to_kv_type(cache_type_v), isa, precise, device, n_gpu_layers,
      main_gpu, tensor_split};
  // By reference: the options outlive this call, in the engine, and must not hold a Python object.
  if (progress)
    options.progress = [&progress](int64_t done, int64_t total) {
      const nb::gil_scoped_acquire acquire;
      (*progress)(done, total);
    };
  std::vector<std::string> files;  // bytes: a file's name need not be UTF-8
  for (const nb::bytes& path : paths) files.emplace_back(path.c_str(), path.size());
  auto values = to_metadata(metadata);
  const nb::gil_scoped_release release;
  return std::make_shared<Engine>(models::ModelSource(std::move(files), entries, std::move(values)), options);
}

// Lets Ctrl-C end a long pass: Python's signal handlers run between layers. Short passes are over before anyone waits.
std::function<void()> check_signals_if_long(size_t n_tokens) {
  if (n_tokens < 16) return {};
  return [] {
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  };
}

// A cache that keeps its engine alive.
struct SessionHandle {
  std::shared_ptr<Engine> engine;
  std::unique_ptr<KvCache> cache;
};

// The engine that all sessions are of, and their caches.
std::pair<Engine*, std::vector<KvCache*>> engine_of(const std::vector<SessionHandle*>& sessions) {
  if (sessions.empty() || !sessions.front()) throw ArgumentError("[decode] sessions, expected at least one, got none");
  std::vector<KvCache*> caches;
  for (const SessionHandle* s : sessions) {
    if (!s || s->engine != sessions.front()->engine) throw ArgumentError("[decode] sessions of different models");
    caches.push_back(s->cache.get());
  }
  return {sessions.front()->engine.get(), std::move(caches)};
}

}  // namespace

void bind_model(nb::module_& m) {
  m.def("supported_isas", cpu::supported_isas, "Instruction sets that this machine can run, best first.");
  m.def("built_isas", cpu::built_isas, "Instruction sets that this build has, best first.");
  m.def(
      "cuda_devices",
      [] {
        const nb::gil_scoped_release release;
        std::vector<std::tuple<std::string, int, int, int, int64_t, int64_t, int>> all;
        for (const cuda::DeviceInfo& d : cuda::devices())
          all.push_back({d.name, d.major, d.minor, d.multiprocessors, d.memory_bytes, d.free_bytes, d.driver_version});
        return all;
      },
      "GPUs, in the driver's order: name, compute capability (major, minor), multiprocessors, bytes of memory, bytes "
      "free, the driver's CUDA version (1000 major + 10 minor).");
  m.def(
      "cuda_device_count",
      [] {
        const cuda::Entry* entry = cuda::entry();
        return entry ? entry->device_count(nullptr) : 0;
      },
      nb::call_guard<nb::gil_scoped_release>(), "How many GPUs there are; takes no memory of theirs.");
  m.def("cuda_why_not", cuda::why_not, "Why no GPU can be used; empty where one can.");
  m.def("default_thread_count", default_thread_count,
        "Physical cores this process may use, affinity and cgroup quota counted.");
  m.def(
      "supported_architectures",
      [] {
        std::vector<std::string> names;
        for (const models::Architecture& a : models::architectures()) names.push_back(a.name);
        return names;
      },
      "GGUF architectures that this build runs.");

  nb::class_<Engine>(m, "Engine", "A model's weights on a device.")
      .def_prop_ro("n_vocab", [](const Engine& e) { return e.hyperparameters().n_vocab; })
      .def_prop_ro("n_embd", [](const Engine& e) { return e.hyperparameters().n_embd; })
      .def_prop_ro("n_layer", [](const Engine& e) { return e.hyperparameters().n_layer; })
      .def_prop_ro("n_head", [](const Engine& e) { return e.hyperparameters().n_head; })
      .def_prop_ro("n_head_kv", [](const Engine& e) { return e.hyperparameters().n_head_kv; })
      .def_prop_ro("n_ctx_train", [](const Engine& e) { return e.hyperparameters().n_ctx_train; })
      .def_prop_ro("rope_magnitude", [](const Engine& e) { return e.hyperparameters().rope.magnitude(); })
      .def_prop_ro("rope_attn_factor", [](const Engine& e) { return e.hyperparameters().rope.attn_factor; })
      .def_prop_ro("n_ctx", &Engine::n_ctx)
      .def_prop_ro("n_threads", &Engine::n_threads)
      .def_prop_ro("max_batch", &Engine::max_batch)
      .def_prop_ro("isa", &Engine::isa)
      .def_prop_ro(
          "device_layers",
          [](const Engine& e) {
            std::vector<std::tuple<std::string, int, int>> all;
            for (const DeviceLayers& l : e.device_layers()) all.push_back({l.name, l.first, l.last});
            return all;
          },
          "(device, first, last) of layers [first, last) one after the other, the output counting as the last layer.")
      .def_prop_ro("finds_top_logits", &Engine::finds_top_logits)
      .def_prop_ro_static("most_top_logits", [](nb::handle) { return Engine::kMostTopLogits; })
      .def_prop_ro("device_note", &Engine::device_note)
      .def_prop_ro("device_slow", &Engine::device_slow)
      .def_prop_ro("keys_read", [](const Engine& e) { return e.source().keys_read(); })
      .def_prop_ro("unused_tensors", [](const Engine& e) { return e.source().unused_tensors(); })
      .def(
          "measure_reading",
          [](const Engine& e, double seconds) {
            // As much as no cache holds; all of a large file would take long.
            constexpr size_t kMostBytes = size_t(1) << 30;
            const auto bytes = e.source().mapped();
            const double gb_s =
                measure_reading(bytes.first(std::min(bytes.size(), kMostBytes)), e.n_threads(), seconds, e.isa());
            e.source().check_files();
            return gb_s;
          },
          "seconds"_a = 0.2, nb::call_guard<nb::gil_scoped_release>(),
          "Gigabytes (1e9) a second that the threads together read from the model's largest file, its first GiB at "
          "most, where it is mapped; the best of several passes.")
      .def("observe", &Engine::observe, nb::call_guard<nb::gil_scoped_release>(),
           "From now on the squares of all inputs of matrices are summed.")
      .def(
          "input_squares",
          [](Engine& e) {
            nb::list found;
            for (const auto& [name, squares] : e.input_squares()) {
              float* data = nullptr;
              const Logits sums = make_logits(1, squares.sums.size(), data);
              for (size_t i = 0; i < squares.sums.size(); ++i) data[i] = float(squares.sums[i]);
              found.append(nb::make_tuple(name, squares.n_rows, sums));
            }
            return found;
          },
          nb::sig("def input_squares(self) -> list[tuple[str, int, Annotated[NDArray[numpy.float32], "
                  "dict(shape=(None, None))]]]"),
          "(tensor, tokens, sums float32 [1, n_cols]) of every matrix since observe().");
  m.def("make_engine", make_engine, "paths"_a, "tensors"_a, "metadata"_a, "n_ctx"_a, "n_threads"_a, "cache_type_k"_a,
        "cache_type_v"_a, "isa"_a, "precise"_a = false, "device"_a = "cpu", "n_gpu_layers"_a = nb::none(),
        "main_gpu"_a = -1, "tensor_split"_a = std::vector<double>(), "progress"_a = nb::none(),
        "Maps the files and reads the model. tensors: (name, type_id, shape, file_index, offset). progress is called "
        "with the bytes of weights that were read, and all there are.");

  nb::class_<SessionHandle>(m, "Session", "One sequence: a KV cache of an engine.")
      .def(
          "__init__",
          [](SessionHandle* self, std::shared_ptr<Engine> engine) {
            auto cache = engine->make_cache();
            new (self) SessionHandle{std::move(engine), std::move(cache)};
          },
          "engine"_a)
      .def_prop_ro("n_past", [](const SessionHandle& s) { return s.cache->n_past(); })
      .def(
          "truncate",
          [](SessionHandle& s, int64_t n) {
            const nb::gil_scoped_release release;
            s.engine->truncate(*s.cache, n);
          },
          "n"_a, "Keeps the first n positions.")
      .def(
          "forward",
          [](SessionHandle& s, const Tokens& tokens, const std::string& logits_of) {
            const LogitsOf wanted = logits_of == "none"  ? LogitsOf::kNone
                                    : logits_of == "all" ? LogitsOf::kAll
                                                         : LogitsOf::kLast;
            const size_t rows = wanted == LogitsOf::kNone ? 0 : wanted == LogitsOf::kAll ? tokens.size() : 1;
            float* data = nullptr;
            Logits logits = make_logits(rows, size_t(s.engine->hyperparameters().n_vocab), data);
            {
              const nb::gil_scoped_release release;
              s.engine->forward(*s.cache, span_of(tokens), wanted, data, check_signals_if_long(tokens.size()));
            }
            return logits;
          },
          "tokens"_a, "logits_of"_a = "last",
          "Appends tokens; logits_of: none, last or all. Float32 logits [0, 1 or len(tokens), n_vocab].")
      .def(
          "forward_top",
          [](SessionHandle& s, const Tokens& tokens, int k, int64_t n_vocab) {
            TopArrays found(1, k);
            const TopLogits top = found.request(k, n_vocab);
            {
              const nb::gil_scoped_release release;
              s.engine->forward(*s.cache, span_of(tokens), LogitsOf::kLast, nullptr,
                                check_signals_if_long(tokens.size()), nullptr, &top);
            }
            return found.arrays();
          },
          "tokens"_a, "k"_a, "n_vocab"_a,
          "Appends tokens; of the last one's logits the k largest of the first n_vocab, largest first: ids int32 [1, "
          "k], "
          "logits float32 [1, k].")
      .def(
          "residuals",
          [](SessionHandle& s, const Tokens& tokens) {
            const auto& h = s.engine->hyperparameters();
            float* data = nullptr;
            Residuals residuals = make_residuals(size_t(h.n_layer) + 1, tokens.size(), size_t(h.n_embd), data);
            {
              const nb::gil_scoped_release release;
              s.engine->forward(*s.cache, span_of(tokens), LogitsOf::kNone, nullptr,
                                check_signals_if_long(tokens.size()), data);
            }
            return residuals;
          },
          "tokens"_a,
          "Appends tokens; the residual stream before each layer and after the last, float32 "
          "[n_layer + 1, len(tokens), n_embd].");
  m.def(
      "decode",
      [](const std::vector<SessionHandle*>& sessions, const Tokens& tokens) {
        const auto [engine, caches] = engine_of(sessions);
        float* data = nullptr;
        Logits logits = make_logits(sessions.size(), size_t(engine->hyperparameters().n_vocab), data);
        {
          const nb::gil_scoped_release release;
          engine->decode(caches, span_of(tokens), data);
        }
        return logits;
      },
      "sessions"_a, "tokens"_a, "One token for each session; float32 logits [len(sessions), n_vocab].");
  m.def(
      "decode_top",
      [](const std::vector<SessionHandle*>& sessions, const Tokens& tokens, int k, int64_t n_vocab) {
        const auto [engine, caches] = engine_of(sessions);
        TopArrays found(sessions.size(), k);
        const TopLogits top = found.request(k, n_vocab);
        {
          const nb::gil_scoped_release release;
          engine->decode(caches, span_of(tokens), nullptr, &top);
        }
        return found.arrays();
      },
      "sessions"_a, "tokens"_a, "k"_a, "n_vocab"_a,
      "The same with each session's k largest logits of the first n_vocab, largest first: ids int32 [len(sessions), "
      "k], "
      "logits float32 [len(sessions), k].");
}

}  // namespace gristmill::bindings
