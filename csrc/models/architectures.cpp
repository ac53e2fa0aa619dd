#include "models/model.h"

#include "core/error.h"

namespace gristmill::models {

std::unique_ptr<Model> make_llama(ModelSource& source, Backend& backend);
std::unique_ptr<Model> make_qwen2(ModelSource& source, Backend& backend);

namespace {

constexpr Architecture kArchitectures[] = {
    {"llama", make_llama},
    {"qwen2", make_qwen2},
};

}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

namespace {

const Architecture& architecture_of(const ModelSource& source) {
  std::string names;
  for (const Architecture& a : kArchitectures) {
    if (source.architecture() == a.name) return a;
    names += (names.empty() ? "" : ", ") + std::string(a.name);
  }
  throw UnsupportedModelError(source.path() + ": architecture " + source.architecture() +
                              " is not supported; supported: " + names);
}

}  // namespace

void check_architecture(const ModelSource& source) { architecture_of(source); }

std::unique_ptr<Model> make_model(ModelSource& source, Backend& backend) {
  return architecture_of(source).make(source, backend);
}

}  // namespace gristmill::models
