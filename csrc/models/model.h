// A model: tokens in, logits out. One architecture is one file that reads its weights and says its layers.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>

#include "backend.h"
#include "models/hyperparameters.h"
#include "models/model_source.h"

namespace gristmill::models {

class Model {
 public:
  virtual ~Model() = default;
  virtual const Hyperparameters& hyperparameters() const = 0;
  // Runs the batch, appends its keys and values to the spans' caches (which must have room and whose n_past the caller
  // advances), and writes the logits of batch.output_rows to host memory, [output_rows.size(), n_vocab], or fills in
  // batch.top where that is given.
  // between_layers, where given, is called before each layer and may throw to give the pass up. batch.residuals, where
  // given, is filled in; only then is anything read back in the middle.
  virtual void forward(const Batch& batch, float* logits, const std::function<void()>& between_layers) = 0;
};

struct Architecture {
  const char* name;
  std::unique_ptr<Model> (*make)(ModelSource& source, Backend& backend);
};

// Every architecture, one line each in architectures.cpp.
std::span<const Architecture> architectures();
// Throws UnsupportedModelError, naming those there are.
void check_architecture(const ModelSource& source);
// The same, and what reading a model throws.
std::unique_ptr<Model> make_model(ModelSource& source, Backend& backend);

}  // namespace gristmill::models
