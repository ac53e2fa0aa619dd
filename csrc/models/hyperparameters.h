// What a transformer of the llama family is made of, read from GGUF keys and checked before anything is computed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend.h"
#include "models/model_source.h"

namespace gristmill::models {

enum class RopeScaling { kNone, kLinear, kYarn };

struct RopeParameters {
  RopeStyle style = RopeStyle::kNeox;
  int dims = 0;  // of each head, from its start; even
  double freq_base = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;           // context extension
  int64_t original_context = 0;  // of training, before YaRN
  double attn_factor = 1.0;      // multiplies YaRN's own 0.1 ln(factor) + 1
  double ext_factor = 1.0;       // 1: the whole NTK-by-parts ramp; 0: plain interpolation
  double beta_fast = 32.0, beta_slow = 1.0;

  // What cosines and sines are multiplied with: 1, or YaRN's attention temperature.
  double magnitude() const;
  // Radians a position for each of dims / 2 pairs; divisors: rope_freqs of the file, or nullptr.
  std::vector<double> frequencies(const float* divisors) const;
};

struct Hyperparameters {
  int64_t n_vocab = 0, n_embd = 0, n_ff = 0, n_ctx_train = 0;
  int n_layer = 0, n_head = 0, n_head_kv = 0, head_dim_k = 0, head_dim_v = 0;
  float rms_epsilon = 0;
  RopeParameters rope;
};

// Reads <architecture>.* keys. Throws GGUFError on a missing, mistyped or impossible value and names the key.
Hyperparameters read_hyperparameters(ModelSource& source, RopeStyle style);

}  // namespace gristmill::models
