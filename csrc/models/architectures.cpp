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

std::unique_ptr<Model> make_model(ModelSource& source, Backend& backend) {
  std::string names;
  for (const Architecture& a : kArchitectures) {
    if (source.architecture() == a.name) return a.make(source, backend);
    names += (names.empty() ? "" : ", ") + std::string(a.name);
  }
  throw UnsupportedModelError(source.path() + ": architecture " + source.architecture() +
                              " is not supported; supported: " + names);
}

}  // namespace gristmill::models
