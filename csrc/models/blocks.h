// The parts that models of the llama family share: embedding, attention block, gated feed-forward block, output head.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "backend.h"
#include "models/hyperparameters.h"
#include "models/model_source.h"

namespace gristmill::models {

using Vector = std::shared_ptr<const float[]>;

struct LayerWeights {
  Vector attn_norm, ffn_norm;     // [n_embd]
  Weight attn_q, attn_k, attn_v;  // [n_head * head_dim, n_embd]
  // Biases are nullptr where the file has none.
  Vector attn_q_bias, attn_k_bias, attn_v_bias, attn_output_bias, ffn_gate_bias, ffn_up_bias, ffn_down_bias;
  Weight attn_output;       // [n_embd, n_head * head_dim_v]
  Weight ffn_gate, ffn_up;  // [n_ff, n_embd]
  Weight ffn_down;          // [n_embd, n_ff]
};

struct Weights {
  Weight token_embd;  // [n_vocab, n_embd]
  Vector output_norm;
  Weight output;  // [n_vocab, n_embd]; token_embd's where the file ties them
  std::vector<LayerWeights> layers;
  std::vector<float> rope_divisors;  // [rope.dims / 2] or empty
};

// Reads every tensor of the family. Throws GGUFError where one is missing or has another shape, UnsupportedModelError
// where a layer has a tensor that this family does not know and that would change the result.
Weights read_weights(ModelSource& source, Backend& backend, const Hyperparameters& h);

// Floats of one token in each buffer that a pass has for all of its tokens.
std::array<int64_t, 10> activation_widths(const Hyperparameters& h);
// Rows whose logits are made at once, at most: floats of n_embd and, but where operations write to the host, of
// n_vocab.
constexpr int kHeadRows = 32;

// Work space and the steps of one forward pass, in the order they are called.
class Blocks {
 public:
  Blocks(const Hyperparameters& h, const Weights& weights, Backend& backend);

  void embed(const Batch& batch);                    // x = rows of token_embd; rope tables for the batch
  void attention(const Batch& batch, int layer);     // x += attention(norm(x))
  void feed_forward(const Batch& batch, int layer);  // x += ffn(norm(x))
  void head(const Batch& batch, float* logits);      // logits of batch.output_rows, to the host; ends the pass
  void catch_up() { backend_.catch_up(); }
  void copy_residual(const Batch& batch, int layer);  // batch.residuals[layer] = x

 private:
  void reserve(int n);
  void fill_rope_table(const Batch& batch);

  const Hyperparameters& h_;
  const Weights& weights_;
  Backend& backend_;
  std::vector<double> frequencies_;
  int rows_ = 0;
  std::vector<float> host_table_;
  // [rows, ...] each
  std::shared_ptr<float[]> x_, normed_, q_, k_, v_, attended_, projected_, gate_, up_, rope_table_;
  std::shared_ptr<float[]> head_rows_, head_logits_;
};

}  // namespace gristmill::models
