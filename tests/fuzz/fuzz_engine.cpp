// The engine over a tiny model that the fuzzer breaks: metadata, tensor table, weights, options, tokens. It either
// throws one of our errors, on one line, or gives finite logits.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <utility>

#include "core/error.h"
#include "cpu/dispatch.h"
#include "engine.h"
#include "input.h"
#include "tiny_model.h"

using namespace gristmill;

namespace {

const char* const kKeys[] = {"context_length",
                             "embedding_length",
                             "feed_forward_length",
                             "block_count",
                             "attention.head_count",
                             "attention.head_count_kv",
                             "attention.key_length",
                             "attention.value_length",
                             "attention.layer_norm_rms_epsilon",
                             "rope.dimension_count",
                             "rope.freq_base",
                             "rope.scale_linear",
                             "rope.scaling.type",
                             "rope.scaling.factor",
                             "rope.scaling.original_context_length",
                             "rope.scaling.attn_factor",
                             "rope.scaling.yarn_attn_factor",
                             "rope.scaling.yarn_ext_factor",
                             "rope.scaling.yarn_beta_fast",
                             "rope.scaling.yarn_beta_slow"};
const char* const kTexts[] = {"none", "linear", "yarn", "", "longrope"};

models::Value take_value(fuzz::Input& input) {
  switch (input.below(6)) {
    case 0:
      return input.flip();
    case 1:
      return int64_t(input.take<int8_t>());
    case 2:
      return input.take<int64_t>();
    case 3:
      return double(input.take<int8_t>()) / 4;
    case 4:
      return input.take<double>();
    default:
      return std::string(input.pick(kTexts));
  }
}

uint64_t take_size(fuzz::Input& input) {
  switch (input.below(4)) {
    case 0:
      return input.take<uint8_t>();
    case 1:
      return uint64_t{32} << input.below(60);
    case 2:
      return input.take<uint16_t>();
    default:
      return input.take<uint64_t>();
  }
}

void mutate(test::TinyModel& model, const std::string& prefix, fuzz::Input& input) {
  const auto tensor = [&]() -> models::TensorEntry& {
    return model.tensors[input.below(uint32_t(model.tensors.size()))];
  };
  switch (input.below(11)) {
    case 0:
    case 1:
    case 2:
      model.metadata[prefix + input.pick(kKeys)] = take_value(input);
      break;
    case 3:
      model.metadata.erase(prefix + input.pick(kKeys));
      break;
    case 4:
      tensor().offset = take_size(input);
      break;
    case 5:
      tensor().type_id = input.below(40);
      break;
    case 6: {
      auto& shape = tensor().shape;
      if (shape.empty() || input.flip()) {
        shape.push_back(take_size(input));
      } else {
        shape[input.below(uint32_t(shape.size()))] = take_size(input);
      }
      break;
    }
    case 7: {
      const std::vector<uint64_t> shape = tensor().shape;  // of another tensor
      tensor().shape = shape;
      break;
    }
    case 8:
      tensor().file_index = input.take<int8_t>();
      break;
    case 9: {  // bytes of weights
      const size_t at = input.take<uint32_t>() % model.bytes.size();
      for (size_t i = 0, n = input.below(64); i < n && at + i < model.bytes.size(); ++i)
        model.bytes[at + i] = std::byte(input.take<uint8_t>());
      break;
    }
    default:
      if (model.tensors.size() > 1)
        model.tensors.erase(model.tensors.begin() + input.below(uint32_t(model.tensors.size())));
  }
}

// A sound model of each architecture and format, made when first asked for.
const test::TinyModel& sound(const std::string& architecture, const formats::FormatInfo& format) {
  static std::map<std::pair<std::string, formats::TypeId>, test::TinyModel> all;
  const auto [it, is_new] = all.try_emplace({architecture, format.id});
  if (is_new) {
    test::TinyShape shape;
    shape.architecture = architecture;
    shape.n_embd = shape.n_ff = std::max(64, format.block_size);
    shape.n_vocab = 8;
    it->second = test::make_tiny(shape, format.id);
  }
  return it->second;
}

void run(const test::TinyModel& model, const test::MemoryFile& file, const EngineOptions& options, fuzz::Input& input) {
  Engine engine(models::ModelSource({file.path()}, model.tensors, model.metadata), options);
  const auto cache = engine.make_cache(), other = engine.make_cache();
  const auto n_vocab = size_t(engine.hyperparameters().n_vocab);
  if (n_vocab > 4096) return;
  for (int step = 0; step < 3; ++step) {
    std::vector<int32_t> tokens;
    for (size_t i = 0, n = input.below(6); i < n; ++i) tokens.push_back(input.take<int8_t>() % 10);
    const LogitsOf wanted = input.flip() ? LogitsOf::kAll : LogitsOf::kLast;
    const auto logits = std::make_unique<float[]>(n_vocab * std::max<size_t>(2, tokens.size()));
    const int64_t before = cache->n_past();
    try {
      if (input.flip()) {
        KvCache* both[] = {cache.get(), other.get()};
        if (tokens.size() < 2) continue;
        engine.decode(both, std::span(tokens).first(2), logits.get());
        continue;
      }
      engine.forward(*cache, tokens, wanted, logits.get());
    } catch (const Error&) {
      fuzz::require(cache->n_past() == before, "a call that fails appends nothing");
      throw;
    }
    for (size_t i = 0; i < n_vocab; ++i) fuzz::require(std::isfinite(logits[i]), "logits are finite");
    if (input.flip()) cache->truncate(cache->n_past() / 2);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<std::string> isas = cpu::supported_isas();
  static const test::MemoryFile file;
  constexpr KvType kTypes[] = {KvType::F16, KvType::F32, KvType::Q8_0};
  fuzz::Input input(data, size);
  const auto architectures = models::architectures();
  const std::string architecture = architectures[input.below(uint32_t(architectures.size()))].name;
  const auto n_formats = uint32_t(formats::end_formats() - formats::begin_formats());
  test::TinyModel model = sound(architecture, formats::begin_formats()[input.below(n_formats)]);
  EngineOptions options{input.below(80), 1 + int(input.below(2)), input.pick(kTypes), input.pick(kTypes),
                        isas[input.below(uint32_t(isas.size()))]};
  for (uint32_t i = 0, n = input.below(6); i < n; ++i) mutate(model, architecture + ".", input);
  if (!file.write(model.bytes)) return 0;
  try {
    run(model, file, options, input);
  } catch (const Error& e) {
    fuzz::require(std::string(e.what()).find('\n') == std::string::npos, "errors are one line");
  }
  return 0;
}
