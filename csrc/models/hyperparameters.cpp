#include "models/hyperparameters.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/error.h"

namespace gristmill::models {
namespace {

// Bounds far above any model there is; they keep every product below within 64 bits.
constexpr int64_t kMaxWidth = int64_t{1} << 24;
constexpr int64_t kMaxContext = int64_t{1} << 31;

double positive(ModelSource& source, const std::string& key, std::optional<double> fallback) {
  const auto found = source.optional_number(key);
  if (!found && !fallback) source.fail("metadata " + source.architecture() + "." + key + " is missing");
  const double x = found ? *found : *fallback;
  if (!(x > 0))
    source.fail("metadata " + source.architecture() + "." + key + ", expected more than 0, got " + std::to_string(x));
  return x;
}

RopeParameters read_rope(ModelSource& source, RopeStyle style, int head_dim, int64_t n_ctx_train) {
  RopeParameters rope;
  rope.style = style;
  rope.dims = int(source.optional_integer("rope.dimension_count", 2, head_dim).value_or(head_dim));
  if (rope.dims % 2 != 0) source.fail("metadata " + source.architecture() + ".rope.dimension_count is odd");
  rope.freq_base = positive(source, "rope.freq_base", 10000.0);
  if (rope.freq_base <= 1.0) source.fail("metadata " + source.architecture() + ".rope.freq_base, expected more than 1");
  rope.original_context =
      source.optional_integer("rope.scaling.original_context_length", 0, kMaxContext).value_or(n_ctx_train);
  if (rope.original_context == 0) rope.original_context = n_ctx_train;  // ggml writes 0 for "not given"
  // Files from before rope.scaling.* carry a bare linear factor.
  const auto old_factor = source.optional_number("rope.scale_linear");
  const auto factor = source.optional_number("rope.scaling.factor");
  rope.factor = factor.value_or(old_factor.value_or(1.0));
  if (rope.factor == 0.0) rope.factor = 1.0;  // ggml writes 0 for "none"
  if (!(rope.factor > 0))
    source.fail("metadata " + source.architecture() + ".rope.scaling.factor, expected more than 0");
  const std::string type = source.optional_text("rope.scaling.type").value_or(rope.factor != 1.0 ? "linear" : "none");
  if (type == "none") {
    rope.scaling = RopeScaling::kNone;
  } else if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::kYarn;
  } else {
    throw UnsupportedModelError(source.path() + ": metadata " + source.architecture() +
                                ".rope.scaling.type, expected none, linear or yarn, got " + type);
  }
  rope.attn_factor =
      positive(source, "rope.scaling.attn_factor", 1.0) * positive(source, "rope.scaling.yarn_attn_factor", 1.0);
  const double ext_factor = source.optional_number("rope.scaling.yarn_ext_factor").value_or(-1.0);
  if (ext_factor > 1.0)
    source.fail("metadata " + source.architecture() + ".rope.scaling.yarn_ext_factor, expected at most 1");
  rope.ext_factor = ext_factor < 0 ? 1.0 : ext_factor;  // negative: not given, as in ggml
  rope.beta_fast = positive(source, "rope.scaling.yarn_beta_fast", 32.0);
  rope.beta_slow = positive(source, "rope.scaling.yarn_beta_slow", 1.0);
  return rope;
}

}  // namespace

double RopeParameters::magnitude() const {
  if (scaling != RopeScaling::kYarn || ext_factor == 0.0) return attn_factor;
  return attn_factor * (factor > 1.0 ? 0.1 * std::log(factor) + 1.0 : 1.0);
}

std::vector<double> RopeParameters::frequencies(const float* divisors) const {
  std::vector<double> frequency(size_t(dims) / 2);
  // YaRN (Peng et al. 2023, section 3.2): pairs that turn more than beta_fast times over the original context keep
  // their frequency, those below beta_slow turns are interpolated, a linear ramp over the pair's index lies between.
  const auto pair_of_turns = [&](double turns) {
    return dims * std::log(double(original_context) / (turns * 2.0 * std::numbers::pi)) / (2.0 * std::log(freq_base));
  };
  const double low = std::max(0.0, std::floor(pair_of_turns(beta_fast)));
  const double high = std::min(double(dims - 1), std::ceil(pair_of_turns(beta_slow)));
  for (size_t i = 0; i < frequency.size(); ++i) {
    double f = std::pow(freq_base, -2.0 * double(i) / dims);
    if (divisors) f /= divisors[i];
    if (scaling == RopeScaling::kLinear) f /= factor;
    if (scaling == RopeScaling::kYarn) {
      const double ramp = std::clamp((double(i) - low) / std::max(0.001, high - low), 0.0, 1.0);
      const double keep = (1.0 - ramp) * ext_factor;
      f = f / factor * (1.0 - keep) + f * keep;
    }
    frequency[i] = f;
  }
  return frequency;
}

Hyperparameters read_hyperparameters(ModelSource& source, RopeStyle style) {
  Hyperparameters h;
  h.n_ctx_train = source.integer("context_length", 1, kMaxContext);
  h.n_embd = source.integer("embedding_length", 1, kMaxWidth);
  h.n_ff = source.integer("feed_forward_length", 1, kMaxWidth);
  h.n_layer = int(source.integer("block_count", 1, 4096));
  h.n_head = int(source.integer("attention.head_count", 1, 65536));
  h.n_head_kv = int(source.optional_integer("attention.head_count_kv", 1, 65536).value_or(h.n_head));
  if (h.n_head % h.n_head_kv != 0)
    source.fail("metadata " + source.architecture() + ".attention.head_count " + std::to_string(h.n_head) +
                " is no multiple of head_count_kv " + std::to_string(h.n_head_kv));
  const auto key_length = source.optional_integer("attention.key_length", 2, 65536);
  if (!key_length && h.n_embd % h.n_head != 0)
    source.fail("metadata " + source.architecture() + ".embedding_length " + std::to_string(h.n_embd) +
                " is no multiple of attention.head_count " + std::to_string(h.n_head));
  h.head_dim_k = int(key_length.value_or(h.n_embd / h.n_head));
  h.head_dim_v = int(source.optional_integer("attention.value_length", 1, 65536).value_or(h.head_dim_k));
  if (h.head_dim_k % 2 != 0) source.fail("heads of " + std::to_string(h.head_dim_k) + " cannot be rotated in pairs");
  h.rms_epsilon = float(positive(source, "attention.layer_norm_rms_epsilon", std::nullopt));
  h.rope = read_rope(source, style, h.head_dim_k, h.n_ctx_train);
  h.n_vocab = source.rows_of("token_embd.weight");
  if (h.n_vocab < 1 || h.n_vocab > kMaxWidth) source.fail("a vocabulary of " + std::to_string(h.n_vocab) + " tokens");
  return h;
}

}  // namespace gristmill::models
