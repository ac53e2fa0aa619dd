// llama (Touvron et al. 2023; Llama 3): pre-norm, grouped-query attention without biases, interleaved rotary pairs with
// optional divisors (rope_freqs), SwiGLU, tied or separate output. Mixtures of experts under this name are refused.
#include "core/error.h"
#include "models/dense_decoder.h"

namespace gristmill::models {

std::unique_ptr<Model> make_llama(ModelSource& source, Backend& backend) {
  if (source.optional_integer("expert_count", 0, 65536).value_or(0) > 0)
    throw UnsupportedModelError(source.path() + ": llama with a mixture of experts is not supported");
  return std::make_unique<DenseDecoder>(source, backend, RopeStyle::kInterleaved);
}

}  // namespace gristmill::models
