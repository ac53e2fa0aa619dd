#include "models/blocks.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "core/error.h"

namespace gristmill::models {
Weights read_weights(ModelSource& source, Backend& backend, const Hyperparameters& h) {
  Weights w;
  const auto matrix = [&](const std::string& name, int64_t n_rows, int64_t n_cols) {
    return backend.upload_matrix(source.matrix(name, n_rows, n_cols));
  };
  backend.at_layer(0);
  w.token_embd = matrix("token_embd.weight", h.n_vocab, h.n_embd);
  backend.at_layer(h.n_layer);
  w.output_norm = backend.upload_vector(source.vector("output_norm.weight", h.n_embd));
  const bool tied = !source.has("output.weight");
  w.output = tied && backend.share_memory(0, h.n_layer)
                 ? w.token_embd
                 : matrix(tied ? "token_embd.weight" : "output.weight", h.n_vocab, h.n_embd);
  if (source.has("rope_freqs.weight")) {
    const int n = h.rope.dims / 2;
    const Weight divisors = source.vector("rope_freqs.weight", n);
    w.rope_divisors.resize(size_t(n));
    divisors.format->to_float(divisors.data, w.rope_divisors.data(), n);
    for (const float d : w.rope_divisors)
      if (!(d > 0) || !std::isfinite(d)) source.fail("tensor rope_freqs.weight, expected positive finite numbers");
  }
  const int64_t n_q = int64_t(h.n_head) * h.head_dim_k;
  const int64_t n_k = int64_t(h.n_head_kv) * h.head_dim_k;
  const int64_t n_v = int64_t(h.n_head_kv) * h.head_dim_v;
  for (int i = 0; i < h.n_layer; ++i) {
    backend.at_layer(i);
    const std::string prefix = "blk." + std::to_string(i) + ".";
    const auto vector = [&](const char* name, int64_t n) {
      return backend.upload_vector(source.vector(prefix + name, n));
    };
    const auto optional = [&](const char* name, int64_t n) {
      return backend.upload_vector(source.optional_vector(prefix + name, n));
    };
    LayerWeights l;
    l.attn_norm = vector("attn_norm.weight", h.n_embd);
    l.ffn_norm = vector("ffn_norm.weight", h.n_embd);
    l.attn_q = matrix(prefix + "attn_q.weight", n_q, h.n_embd);
    l.attn_k = matrix(prefix + "attn_k.weight", n_k, h.n_embd);
    l.attn_v = matrix(prefix + "attn_v.weight", n_v, h.n_embd);
    l.attn_q_bias = optional("attn_q.bias", n_q);
    l.attn_k_bias = optional("attn_k.bias", n_k);
    l.attn_v_bias = optional("attn_v.bias", n_v);
    const int biases = (l.attn_q_bias != nullptr) + (l.attn_k_bias != nullptr) + (l.attn_v_bias != nullptr);
    if (biases != 0 && biases != 3)
      source.fail("layer " + std::to_string(i) + " has a bias for some of q, k and v only");
    l.attn_output_bias = optional("attn_output.bias", h.n_embd);
    l.ffn_gate_bias = optional("ffn_gate.bias", h.n_ff);
    l.ffn_up_bias = optional("ffn_up.bias", h.n_ff);
    l.ffn_down_bias = optional("ffn_down.bias", h.n_embd);
    l.attn_output = matrix(prefix + "attn_output.weight", h.n_embd, int64_t(h.n_head) * h.head_dim_v);
    l.ffn_gate = matrix(prefix + "ffn_gate.weight", h.n_ff, h.n_embd);
    l.ffn_up = matrix(prefix + "ffn_up.weight", h.n_ff, h.n_embd);
    l.ffn_down = matrix(prefix + "ffn_down.weight", h.n_embd, h.n_ff);
    w.layers.push_back(std::move(l));
  }
  for (const std::string& name : source.unused_tensors())
    // attn_rot_embd: a table of frequencies that old converters wrote and that follows from the metadata.
    if (name.starts_with("blk.") && name.find("attn_rot_embd") == std::string::npos)
      throw UnsupportedModelError(source.path() + ": tensor " + name + " is not part of " + source.architecture() +
                                  " as this build runs it; the result would be wrong without it");
  return w;
}

Blocks::Blocks(const Hyperparameters& h, const Weights& weights, Backend& backend)
    : h_(h),
      weights_(weights),
      backend_(backend),
      frequencies_(h.rope.frequencies(weights.rope_divisors.empty() ? nullptr : weights.rope_divisors.data())) {}

std::array<int64_t, 10> activation_widths(const Hyperparameters& h) {
  const int64_t q = int64_t(h.n_head) * h.head_dim_k, attended = int64_t(h.n_head) * h.head_dim_v;
  const int64_t k = int64_t(h.n_head_kv) * h.head_dim_k, v = int64_t(h.n_head_kv) * h.head_dim_v;
  return {h.n_embd, h.n_embd, h.n_embd, q, k, v, attended, h.n_ff, h.n_ff, h.rope.dims};
}

void Blocks::reserve(int n) {
  if (n <= rows_) return;
  const std::array<std::shared_ptr<float[]>*, 10> all = {&x_, &normed_,   &projected_, &q_,  &k_,
                                                         &v_, &attended_, &gate_,      &up_, &rope_table_};
  rows_ = 0;
  for (auto* one : all) one->reset();  // never the old and the new at once
  const std::array<int64_t, 10> widths = activation_widths(h_);
  for (size_t i = 0; i < all.size(); ++i) *all[i] = backend_.allocate(size_t(n) * size_t(widths[i]));
  rows_ = n;
}

// The angle is formed in float64: at position 131 071 a float32 product is off by a hundredth of a radian.
void Blocks::fill_rope_table(const Batch& batch) {
  const size_t half = frequencies_.size();
  const double magnitude = h_.rope.magnitude();
  host_table_.resize(batch.tokens.size() * half * 2);
  for (size_t t = 0; t < batch.tokens.size(); ++t) {
    float* row = host_table_.data() + t * half * 2;
    for (size_t i = 0; i < half; ++i) {
      const double angle = double(batch.positions[t]) * frequencies_[i];
      row[i] = float(std::cos(angle) * magnitude);
      row[half + i] = float(std::sin(angle) * magnitude);
    }
  }
  backend_.upload_table(host_table_.data(), host_table_.size(), rope_table_.get());
}

void Blocks::embed(const Batch& batch) {
  reserve(batch.n_rows());
  backend_.begin(batch);
  backend_.at_layer(0);
  fill_rope_table(batch);
  backend_.embed(weights_.token_embd, batch.tokens, x_.get());
}

void Blocks::attention(const Batch& batch, int layer) {
  backend_.at_layer(layer);
  const LayerWeights& l = weights_.layers[size_t(layer)];
  const int n = batch.n_rows();
  backend_.rms_norm(x_.get(), l.attn_norm.get(), h_.rms_epsilon, n, h_.n_embd, normed_.get());
  const std::array<Product, 3> qkv = {Product{&l.attn_q, l.attn_q_bias.get(), q_.get()},
                                      Product{&l.attn_k, l.attn_k_bias.get(), k_.get()},
                                      Product{&l.attn_v, l.attn_v_bias.get(), v_.get()}};
  backend_.matmul(qkv, normed_.get(), n, batch.phase());
  const auto rotate = [&](float* heads, int n_heads) {
    backend_.rope(heads, n, n_heads, h_.head_dim_k, h_.rope.dims, rope_table_.get(), h_.rope.style);
  };
  rotate(q_.get(), h_.n_head);
  rotate(k_.get(), h_.n_head_kv);
  backend_.store_kv(batch, layer, k_.get(), v_.get());
  const float scale = 1.0f / std::sqrt(float(h_.head_dim_k));
  backend_.attention(batch, layer, q_.get(), h_.n_head, scale, attended_.get());
  backend_.matmul(std::array{Product{&l.attn_output, l.attn_output_bias.get(), projected_.get()}}, attended_.get(), n,
                  batch.phase());
  backend_.add(x_.get(), projected_.get(), size_t(n) * size_t(h_.n_embd));
}

void Blocks::feed_forward(const Batch& batch, int layer) {
  const LayerWeights& l = weights_.layers[size_t(layer)];
  const int n = batch.n_rows();
  backend_.rms_norm(x_.get(), l.ffn_norm.get(), h_.rms_epsilon, n, h_.n_embd, normed_.get());
  const std::array<Product, 2> gate_up = {Product{&l.ffn_gate, l.ffn_gate_bias.get(), gate_.get()},
                                          Product{&l.ffn_up, l.ffn_up_bias.get(), up_.get()}};
  backend_.matmul(gate_up, normed_.get(), n, batch.phase());
  backend_.swiglu(gate_.get(), up_.get(), size_t(n) * size_t(h_.n_ff));
  backend_.matmul(std::array{Product{&l.ffn_down, l.ffn_down_bias.get(), projected_.get()}}, gate_.get(), n,
                  batch.phase());
  backend_.add(x_.get(), projected_.get(), size_t(n) * size_t(h_.n_embd));
}

void Blocks::copy_residual(const Batch& batch, int layer) {
  const size_t n = size_t(batch.n_rows()) * size_t(h_.n_embd);
  backend_.download(x_.get(), n, batch.residuals + size_t(layer) * n);
}

void Blocks::head(const Batch& batch, float* logits) {
  backend_.at_layer(h_.n_layer);
  if (!head_rows_) head_rows_ = backend_.allocate(size_t(kHeadRows) * size_t(h_.n_embd));
  if (!head_logits_ && !backend_.writes_host())
    head_logits_ = backend_.allocate(size_t(kHeadRows) * size_t(h_.n_vocab));
  const std::span<const int> rows = batch.output_rows;
  for (size_t first = 0; first < rows.size(); first += kHeadRows) {
    const std::span<const int> some = rows.subspan(first, std::min(rows.size() - first, size_t(kHeadRows)));
    const int n = int(some.size());
    float* host = batch.top ? nullptr : logits + first * size_t(h_.n_vocab);
    float* out = backend_.writes_host() ? host : head_logits_.get();
    backend_.gather_rows(x_.get(), some, h_.n_embd, head_rows_.get());
    backend_.rms_norm(head_rows_.get(), weights_.output_norm.get(), h_.rms_epsilon, n, h_.n_embd, head_rows_.get());
    // Always the decoding kernels: a row's logits then do not depend on how many rows were asked for.
    backend_.matmul(std::array{Product{&weights_.output, nullptr, out}}, head_rows_.get(), n, Phase::kHead);
    if (batch.top) {
      backend_.top_logits(out, n, h_.n_vocab, batch.top->from_row(int64_t(first)));
    } else {
      backend_.download(out, size_t(n) * size_t(h_.n_vocab), host);
    }
  }
  backend_.end();
}

}  // namespace gristmill::models
