// The forward pass of a dense pre-norm decoder: what `llama` and `qwen2` have in common from the first layer to the
// last.
#pragma once

#include "models/blocks.h"
#include "models/model.h"

namespace gristmill::models {

class DenseDecoder final : public Model {
 public:
  DenseDecoder(ModelSource& source, Backend& backend, RopeStyle style)
      : h_(read_hyperparameters(source, style)),
        weights_(read_weights(source, backend, h_)),
        blocks_(h_, weights_, backend) {}

  const Hyperparameters& hyperparameters() const override { return h_; }

  void forward(const Batch& batch, float* logits, const std::function<void()>& between_layers) override {
    blocks_.embed(batch);
    for (int layer = 0; layer < h_.n_layer; ++layer) {
      if (between_layers) {
        blocks_.catch_up();
        between_layers();
      }
      if (batch.residuals) blocks_.copy_residual(batch, layer);
      blocks_.attention(batch, layer);
      blocks_.feed_forward(batch, layer);
    }
    if (batch.residuals) blocks_.copy_residual(batch, h_.n_layer);
    blocks_.head(batch, logits);
  }

 private:
  const Hyperparameters h_;
  const Weights weights_;
  Blocks blocks_;
};

}  // namespace gristmill::models
