// qwen2 (Qwen2 technical report, 2024; QwQ-32B): pre-norm, grouped-query attention with biases on q, k and v, NEOX
// rotary pairs, SwiGLU, tied or separate output.
#include "models/dense_decoder.h"

namespace gristmill::models {

std::unique_ptr<Model> make_qwen2(ModelSource& source, Backend& backend) {
  return std::make_unique<DenseDecoder>(source, backend, RopeStyle::kNeox);
}

}  // namespace gristmill::models
