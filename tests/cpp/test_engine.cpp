// The engine over hostile tensor tables, metadata and weights: a typed error that names what is wrong, or a sound
// model; never anything else. Meant to run under ASan and UBSan.
#include "engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cpu/cpu_kv_cache.h"
#include "cpu/dispatch.h"
#include "cpu/kv_layout.h"
#include "guarded_buffer.h"
#include "tiny_model.h"

namespace gristmill {
namespace {

using formats::TypeId;
using models::TensorEntry;
using models::Value;
using test::make_tiny;
using test::MemoryFile;
using test::TinyModel;
using test::TinyShape;

constexpr std::array<int32_t, 5> kTokens = {1, 0, 39, 7, 7};

// Builds the engine and runs a prompt and a token; logits of the token.
std::vector<float> run(const TinyModel& model, EngineOptions options = {}, std::span<const int32_t> tokens = kTokens) {
  const MemoryFile file;
  CHECK(file.write(model.bytes));
  if (options.n_threads == 0) options.n_threads = 2;
  Engine engine(models::ModelSource({file.path()}, model.tensors, model.metadata), options);
  const auto cache = engine.make_cache();
  std::vector<float> logits(size_t(engine.hyperparameters().n_vocab) * tokens.size());
  engine.forward(*cache, tokens, LogitsOf::kAll, logits.data());
  engine.forward(*cache, tokens.first(1), LogitsOf::kLast, logits.data());
  logits.resize(size_t(engine.hyperparameters().n_vocab));
  return logits;
}

enum class Expect { kGGUF, kUnsupported, kArgument, kContextFull, kDevice, kError };

// What f must throw, with this text in its message.
template <class F>
void check_throws(const char* what, Expect expected, const std::string& part, const F& f) {
  std::string message;
  Expect got = Expect::kError;
  try {
    f();
    CHECK(false, "%s: no error", what);
    return;
  } catch (const GGUFError& e) {
    got = Expect::kGGUF, message = e.what();
  } catch (const UnsupportedModelError& e) {
    got = Expect::kUnsupported, message = e.what();
  } catch (const ArgumentError& e) {
    got = Expect::kArgument, message = e.what();
  } catch (const ContextFullError& e) {
    got = Expect::kContextFull, message = e.what();
  } catch (const DeviceError& e) {
    got = Expect::kDevice, message = e.what();
  } catch (const Error& e) {
    message = e.what();
  }
  CHECK(got == expected, "%s: error of class %d: %s", what, int(got), message.c_str());
  CHECK(message.find(part) != std::string::npos, "%s: '%s' does not say '%s'", what, message.c_str(), part.c_str());
  CHECK(message.find('\n') == std::string::npos, "%s: more than a line", what);
}

const EngineOptions kScalar{0, 1, KvType::F16, KvType::F16, "scalar"};

// Runs a model that may be sound or not: finite logits or one of our errors, on one line.
template <class F>
void check_sound_or_refused(const std::string& what, const F& f) {
  try {
    const std::vector<float> logits = f();
    CHECK(std::ranges::all_of(logits, [](float x) { return std::isfinite(x); }), "%s: not finite", what.c_str());
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find('\n') == std::string::npos, "%s: %s", what.c_str(), e.what());
  } catch (const std::exception& e) {
    CHECK(false, "%s: not one of our errors: %s", what.c_str(), e.what());
  }
}

void sound_models() {
  for (const std::string& isa : cpu::supported_isas()) {
    for (const models::Architecture& architecture : models::architectures()) {
      for (const auto* f = formats::begin_formats(); f != formats::end_formats(); ++f) {
        TinyShape shape;
        shape.architecture = architecture.name;
        const std::vector<float> logits = run(make_tiny(shape, f->id), {0, 2, KvType::F16, KvType::Q8_0, isa});
        CHECK(std::ranges::all_of(logits, [](float x) { return std::isfinite(x); }), "%s, %s", isa.c_str(),
              f->name.data());
        CHECK(std::ranges::any_of(logits, [](float x) { return std::fabs(x) > 0.01f; }), "%s, %s", isa.c_str(),
              f->name.data());
      }
    }
  }
  for (const std::string& isa : cpu::built_isas())
    if (std::ranges::count(cpu::supported_isas(), isa) == 0)
      std::printf("test_engine: %s is not supported by this machine and was not tested\n", isa.c_str());
}

// One block of NaN scales, in any matrix, in any format, with any instruction set, is an error and not a number.
void nan_blocks() {
  for (const auto* f = formats::begin_formats(); f != formats::end_formats(); ++f) {
    const TinyModel sound = make_tiny({}, f->id);
    // A block of this byte is NaN in every format but F32 and the like, where it is too.
    const std::vector<std::byte> block(size_t(f->type_size), std::byte{0xff});
    std::vector<float> y(size_t(f->block_size));
    f->to_float(block.data(), y.data(), f->block_size);
    CHECK(std::isnan(y[0]), "%s", f->name.data());
    for (const std::string& isa : cpu::supported_isas()) {
      for (const char* name : {"token_embd", "blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v", "blk.0.attn_output",
                               "blk.0.ffn_gate", "blk.0.ffn_up", "blk.0.ffn_down", "output"}) {
        TinyModel model = sound;
        const TensorEntry& t = model.tensor(std::string(name) + ".weight");
        const uint64_t row = t.shape[1] / uint64_t(f->block_size) * uint64_t(f->type_size);
        std::ranges::copy(block, model.bytes.begin() + int64_t(t.offset + 7 * row));  // token 7's
        const std::string what = std::string(f->name) + " " + name + " " + isa;
        const int32_t tokens[] = {7};
        check_throws(what.c_str(), Expect::kError, "not finite",
                     [&] { run(model, {0, 1, KvType::F16, KvType::F16, isa}, tokens); });
      }
    }
  }
}

void hostile_tensors() {
  const TinyModel sound = make_tiny({}, TypeId::Q4_K);
  const auto broken = [&](const char* what, Expect expected, const char* part, auto mutate) {
    TinyModel model = sound;
    mutate(model);
    check_throws(what, expected, part, [&] { run(model, kScalar); });
  };
  const auto q = [](TinyModel& m) -> TensorEntry& { return m.tensor("blk.0.attn_q.weight"); };
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  const auto G = Expect::kGGUF;
  broken("offset at the end", G, "ends at byte", [&](TinyModel& m) { q(m).offset = m.bytes.size(); });
  broken("one byte too far", G, "ends at byte", [&](TinyModel& m) { m.tensors.back().offset += 1; });
  broken("offset overflows", G, "does not fit 64 bits", [&](TinyModel& m) { q(m).offset = kHuge - 31; });
  broken("offset of 2^63", G, "ends at byte", [&](TinyModel& m) { q(m).offset = uint64_t{1} << 63; });
  broken("rows overflow", G, "does not fit 64 bits", [&](TinyModel& m) { q(m).shape = {uint64_t{1} << 60, 256}; });
  broken("product overflows", G, "does not fit 64 bits",
         [&](TinyModel& m) { q(m).shape = {uint64_t{1} << 32, uint64_t{1} << 32, 256}; });
  // 2^33 * 2^31 * 256 / 256 * 144 wraps to 0 without checks.
  broken("product wraps to zero", G, "does not fit 64 bits",
         [&](TinyModel& m) { q(m).shape = {uint64_t{1} << 33, uint64_t{1} << 31, 256}; });
  broken("columns of 2^64 - 256", G, "", [&](TinyModel& m) { q(m).shape = {1, kHuge - 255}; });
  broken("no rows", G, "ends at byte", [&](TinyModel& m) { q(m).shape = {0, 256}; });
  broken("no columns", G, "multiple of 256", [&](TinyModel& m) { q(m).shape = {256, 0}; });
  broken("no shape", G, "no shape", [&](TinyModel& m) { q(m).shape = {}; });
  broken("half a block", G, "multiple of 256", [&](TinyModel& m) { q(m).shape = {256, 128}; });
  broken("a file of another", G, "not open", [&](TinyModel& m) { q(m).file_index = 1; });
  broken("a negative file", G, "not open", [&](TinyModel& m) { q(m).file_index = -1; });
  broken("twice", G, "appears twice", [&](TinyModel& m) { m.tensors.push_back(q(m)); });
  broken("odd floats", G, "expected a multiple of 4",
         [&](TinyModel& m) { m.tensor("output_norm.weight").offset += 2; });
  broken("type 4", Expect::kUnsupported, "type 4", [&](TinyModel& m) { q(m).type_id = 4; });
  broken("type 2^32 - 1", Expect::kUnsupported, "4294967295", [&](TinyModel& m) { q(m).type_id = 0xffffffffu; });
  broken("vocabulary without rows of its own", G, "output.weight",
         [&](TinyModel& m) { m.tensor("token_embd.weight").shape = {39, 256}; });
  broken("a token that the shorter vocabulary lacks", Expect::kArgument, "0 to 19",
         [&](TinyModel& m) { m.tensor("token_embd.weight").shape = m.tensor("output.weight").shape = {20, 256}; });
  broken("rope_freqs of zero", G, "rope_freqs", [&](TinyModel& m) {
    m.tensors.push_back({"rope_freqs.weight", uint32_t(TypeId::F32), {32}, 0, m.bytes.size()});
    m.bytes.resize(m.bytes.size() + 128);
  });
  broken("rope_freqs too short", G, "expected shape [32], got [16]",
         [&](TinyModel& m) { m.tensors.push_back({"rope_freqs.weight", uint32_t(TypeId::F32), {16}, 0, 0}); });
  broken("an empty file", G, "not a regular, non-empty", [&](TinyModel& m) { m.bytes.clear(); });
  broken("no tensors", G, "token_embd.weight is missing", [&](TinyModel& m) { m.tensors.clear(); });

  for (size_t i = 0; i < sound.tensors.size(); ++i) {
    const TensorEntry& t = sound.tensors[i];
    if (t.name.ends_with(".bias") || t.name == "output.weight") continue;  // may be absent
    broken(t.name.c_str(), G, t.name.c_str(), [&](TinyModel& m) { m.tensors.erase(m.tensors.begin() + int64_t(i)); });
  }
  // Every tensor with every shape that some other one has, and more: refused, unless it is the right one.
  for (size_t i = 0; i < sound.tensors.size(); ++i) {
    for (const std::vector<uint64_t>& shape : std::initializer_list<std::vector<uint64_t>>{{256},
                                                                                           {1, 256},
                                                                                           {128, 256},
                                                                                           {256, 128},
                                                                                           {256, 256},
                                                                                           {40, 256},
                                                                                           {2, 128, 256},
                                                                                           {1, 1, 1, 256},
                                                                                           {512},
                                                                                           {1}}) {
      TinyModel model = sound;
      model.tensors[i].shape = shape;
      check_sound_or_refused(sound.tensors[i].name, [&] { return run(model, kScalar); });
    }
  }
}

void hostile_metadata() {
  TinyShape shape;
  shape.n_embd = shape.n_ff = 64;
  const TinyModel sound = make_tiny(shape, TypeId::F16);
  const auto broken = [&](const char* key, Value value, Expect expected, const char* part) {
    TinyModel model = sound;
    model.metadata[key] = std::move(value);
    check_throws(key, expected, part, [&] { run(model, kScalar); });
  };
  const auto G = Expect::kGGUF;
  using std::string;
  broken("general.architecture", string("gpt5"), Expect::kUnsupported, "supported: llama, qwen2");
  broken("general.architecture", string(), Expect::kUnsupported, "supported");
  broken("general.architecture", int64_t{1}, G, "general.architecture");
  broken("qwen2.attention.head_count", int64_t{0}, G, "head_count");
  broken("qwen2.attention.head_count", int64_t{3}, G, "head_count");
  broken("qwen2.attention.head_count", true, G, "expected an int, got a bool");
  broken("qwen2.attention.head_count", 4.0, G, "expected an int, got a float");
  broken("qwen2.attention.head_count", string("4"), G, "expected an int, got a str");
  broken("qwen2.attention.head_count_kv", int64_t{3}, G, "no multiple");
  broken("qwen2.attention.head_count_kv", int64_t{0}, G, "head_count_kv");
  broken("qwen2.attention.key_length", int64_t{63}, G, "");
  broken("qwen2.block_count", int64_t{2}, G, "blk.1.");
  broken("qwen2.block_count", int64_t{0}, G, "block_count");
  broken("qwen2.block_count", std::numeric_limits<int64_t>::max(), G, "block_count");
  broken("qwen2.embedding_length", int64_t{-64}, G, "embedding_length");
  broken("qwen2.embedding_length", int64_t{1} << 40, G, "embedding_length");
  broken("qwen2.feed_forward_length", int64_t{255}, G, "ffn_");
  broken("qwen2.context_length", int64_t{0}, G, "context_length");
  broken("qwen2.context_length", int64_t{1} << 62, G, "context_length");
  broken("qwen2.attention.layer_norm_rms_epsilon", 0.0, G, "epsilon");
  broken("qwen2.attention.layer_norm_rms_epsilon", std::nan(""), G, "finite");
  broken("qwen2.attention.layer_norm_rms_epsilon", int64_t{1}, G, "expected a float");
  broken("qwen2.rope.freq_base", -1.0, G, "freq_base");
  broken("qwen2.rope.freq_base", INFINITY, G, "finite");
  broken("qwen2.rope.dimension_count", int64_t{15}, G, "odd");
  broken("qwen2.rope.dimension_count", int64_t{128}, G, "dimension_count");
  broken("qwen2.rope.scaling.type", string("magic"), Expect::kUnsupported, "magic");
  broken("qwen2.rope.scaling.factor", -4.0, G, "factor");

  // Every key with every hostile value: sound or refused.
  const Value values[] = {false, true, string("yarn"), string("linear"), string(1 << 20, 'x')};
  std::vector<Value> all(std::begin(values), std::end(values));
  for (const int64_t n : {int64_t{-1}, int64_t{0}, int64_t{1}, int64_t{2}, int64_t{3}, int64_t{255}, int64_t{4096},
                          int64_t{65536}, int64_t{1} << 24, int64_t{1} << 31, int64_t{1} << 32,
                          std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()})
    all.push_back(n);
  for (const double x : {0.0, -0.0, 1.0, -1.0, 1.0000000001, 1e-300, 1e300, 5e-324, double(NAN), double(INFINITY)})
    all.push_back(x);
  std::vector<std::string> keys = {"qwen2.rope.dimension_count",
                                   "qwen2.attention.key_length",
                                   "qwen2.attention.value_length",
                                   "qwen2.rope.scale_linear",
                                   "qwen2.rope.scaling.type",
                                   "qwen2.rope.scaling.factor",
                                   "qwen2.rope.scaling.original_context_length",
                                   "qwen2.rope.scaling.attn_factor",
                                   "qwen2.rope.scaling.yarn_attn_factor",
                                   "qwen2.rope.scaling.yarn_ext_factor",
                                   "qwen2.rope.scaling.yarn_beta_fast",
                                   "qwen2.rope.scaling.yarn_beta_slow"};
  for (const auto& [key, value] : sound.metadata) keys.push_back(key);
  for (const bool yarn : {false, true}) {
    for (const std::string& key : keys) {
      for (const Value& value : all) {
        TinyModel model = sound;
        if (yarn) {
          model.metadata["qwen2.rope.scaling.type"] = string("yarn");
          model.metadata["qwen2.rope.scaling.factor"] = 4.0;
        }
        model.metadata[key] = value;
        check_sound_or_refused(key, [&] { return run(model, kScalar, std::span(kTokens).first(2)); });
      }
      TinyModel model = sound;
      model.metadata.erase(key);
      check_sound_or_refused(key + " is missing", [&] { return run(model, kScalar); });
    }
  }
}

void hostile_calls() {
  const TinyModel tiny = make_tiny({}, TypeId::Q8_0);
  const MemoryFile file;
  CHECK(file.write(tiny.bytes));
  const auto source = [&] { return models::ModelSource({file.path()}, tiny.tensors, tiny.metadata); };
  check_throws("no files", Expect::kArgument, "files", [&] { models::ModelSource({}, tiny.tensors, tiny.metadata); });
  check_throws("unknown set", Expect::kArgument, "avx9000", [&] {
    EngineOptions options = kScalar;
    options.isa = "avx9000";
    Engine(source(), options);
  });
  Engine engine(source(), kScalar);
  const auto cache = engine.make_cache();
  std::vector<float> logits(size_t(64 * 40));
  const auto forward = [&](std::vector<int32_t> tokens) {
    engine.forward(*cache, tokens, LogitsOf::kAll, logits.data());
  };
  check_throws("no tokens", Expect::kArgument, "at least one", [&] { forward({}); });
  check_throws("a negative token", Expect::kArgument, "got -1", [&] { forward({1, -1}); });
  check_throws("token n_vocab", Expect::kArgument, "got 40", [&] { forward({40}); });
  check_throws("a token of 2^31 - 1", Expect::kArgument, "0 to 39", [&] { forward({2147483647}); });
  check_throws("65 tokens for 64", Expect::kContextFull, "64", [&] { forward(std::vector<int32_t>(65, 1)); });
  CHECK(cache->n_past() == 0, "a refused call appends nothing");
  forward(std::vector<int32_t>(64, 1));
  CHECK(cache->n_past() == 64);
  check_throws("a full context", Expect::kContextFull, "64", [&] { forward({1}); });
  KvCache* two[] = {cache.get(), cache.get()};
  const int32_t ids[] = {1, 2};
  check_throws("a session twice", Expect::kArgument, "twice", [&] { engine.decode(two, ids, logits.data()); });
  check_throws("a token too many", Expect::kArgument, "one for each",
               [&] { engine.decode(std::span(two).first(1), ids, logits.data()); });
  check_throws("decode, full", Expect::kContextFull, "full",
               [&] { engine.decode(std::span(two).first(1), std::span(ids).first(1), logits.data()); });
  TinyShape small_heads;
  small_heads.n_head = small_heads.n_head_kv = 16;
  check_throws("q8_0 of 16", Expect::kArgument, "multiple of 32",
               [&] { run(make_tiny(small_heads, TypeId::F16), {0, 1, KvType::Q8_0, KvType::F16, "scalar"}); });
}

// After an error in the middle the session holds what it held before, and the next call is as if nothing had been.
void errors_append_nothing() {
  TinyModel tiny = make_tiny({}, TypeId::F16);
  const TensorEntry& embd = tiny.tensor("token_embd.weight");
  tiny.bytes[embd.offset + 7 * 512 + 1] = std::byte{0x7f};  // a NaN in token 7's row
  const MemoryFile file;
  CHECK(file.write(tiny.bytes));
  Engine engine(models::ModelSource({file.path()}, tiny.tensors, tiny.metadata), kScalar);
  const auto cache = engine.make_cache(), other = engine.make_cache();
  std::vector<float> logits(40), expected(40);
  const int32_t first[] = {1, 2, 3}, bad[] = {4, 7}, next[] = {5};
  engine.forward(*cache, first, LogitsOf::kLast, logits.data());
  check_throws("NaN in a row", Expect::kError, "position 4 are not finite",
               [&] { engine.forward(*cache, bad, LogitsOf::kLast, logits.data()); });
  CHECK(cache->n_past() == 3, "%lld", (long long)cache->n_past());
  engine.forward(*cache, next, LogitsOf::kLast, logits.data());
  engine.forward(*other, first, LogitsOf::kLast, expected.data());
  engine.forward(*other, next, LogitsOf::kLast, expected.data());
  CHECK(logits == expected);
}

// Contexts that end in the middle of what attention takes at a time. It reads K by whole tiles, so that they must lie
// in the memory of their own head: what follows the last head's belongs to nobody.
void odd_contexts() {
  constexpr KvType kTypes[] = {KvType::F32, KvType::F16, KvType::Q8_0};
  const TinyModel tiny = make_tiny({}, TypeId::F16);
  const MemoryFile file;
  CHECK(file.write(tiny.bytes));
  for (const int64_t n_ctx : {1, 15, 16, 17, 47, 63, 64, 65, 130}) {
    for (const KvType type_k : kTypes) {
      for (const KvType type_v : kTypes) {
        const cpu::CpuKvCache cache({1, 2, 64, 64, n_ctx, type_k, type_v});
        const int64_t tile_bytes = cpu::kv_tile_bytes(type_k, 64);
        CHECK(cache.v(0, 0) - cache.k(0, 0) >= (n_ctx + cpu::kTile - 1) / cpu::kTile * tile_bytes, "n_ctx %lld",
              (long long)n_ctx);
        Engine engine(models::ModelSource({file.path()}, tiny.tensors, tiny.metadata), {n_ctx, 1, type_k, type_v, ""});
        const auto full = engine.make_cache();
        std::vector<float> logits(40);
        engine.forward(*full, std::vector<int32_t>(size_t(n_ctx), 3), LogitsOf::kLast, logits.data());
        CHECK(std::ranges::all_of(logits, [](float x) { return std::isfinite(x); }));
      }
    }
  }
}

// Residual streams fill what is given to the float and change nothing else.
void residual_streams() {
  const TinyModel model = make_tiny({}, TypeId::Q4_K);
  const MemoryFile file;
  CHECK(file.write(model.bytes));
  Engine engine(models::ModelSource({file.path()}, model.tensors, model.metadata), kScalar);
  const size_t n_embd = size_t(engine.hyperparameters().n_embd), n_layer = size_t(engine.hyperparameters().n_layer);
  const size_t n_vocab = size_t(engine.hyperparameters().n_vocab), stream = kTokens.size() * n_embd;
  const test::Guarded<float> residuals((n_layer + 1) * stream);
  std::fill_n(residuals.data(), residuals.size(), std::numeric_limits<float>::quiet_NaN());
  std::vector<float> plain(n_vocab), watched(n_vocab);
  engine.forward(*engine.make_cache(), kTokens, LogitsOf::kLast, plain.data());
  engine.forward(*engine.make_cache(), kTokens, LogitsOf::kLast, watched.data(), {}, residuals.data());
  CHECK(plain == watched, "logits differ");
  CHECK(std::all_of(residuals.data(), residuals.data() + residuals.size(), [](float v) { return std::isfinite(v); }));
  for (size_t layer = 0; layer < n_layer; ++layer) {
    const float* before = residuals.data() + layer * stream;
    CHECK(!std::equal(before, before + stream, before + stream), "layer %zu adds nothing", layer);
  }
}

void cut_file() {
  const TinyModel tiny = make_tiny({}, TypeId::Q8_0);
  for (const int n_threads : {1, 4}) {
    const MemoryFile file, other_file;
    CHECK(file.write(tiny.bytes) && other_file.write(tiny.bytes));
    const EngineOptions options{0, n_threads, KvType::F16, KvType::F16, ""};
    Engine engine(models::ModelSource({file.path()}, tiny.tensors, tiny.metadata), options);
    Engine other(models::ModelSource({other_file.path()}, tiny.tensors, tiny.metadata), options);
    const auto cache = engine.make_cache(), other_cache = other.make_cache();
    std::vector<float> logits(40 * kTokens.size());
    engine.forward(*cache, kTokens, LogitsOf::kAll, logits.data());
    CHECK(file.write({std::byte{0}}));
    for (int round = 0; round < 2; ++round)
      check_throws("cut", Expect::kGGUF, "was cut",
                   [&] { engine.forward(*cache, kTokens, LogitsOf::kAll, logits.data()); });
    CHECK(cache->n_past() == int64_t(kTokens.size()));
    other.forward(*other_cache, kTokens, LogitsOf::kAll, logits.data());
  }
}

}  // namespace
}  // namespace gristmill

int main() {
  using namespace gristmill;
  sound_models();
  nan_blocks();
  hostile_tensors();
  hostile_metadata();
  hostile_calls();
  errors_append_nothing();
  odd_contexts();
  residual_streams();
  cut_file();
  return test::failures("test_engine");
}
