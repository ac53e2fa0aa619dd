#include "sampling/shaping.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <string>

#include "core/error.h"

namespace gristmill::sampling {

// Division keeps the order but for ties that rounding makes, so a temperature in front of a truncation sees the whole.
Reach Temperature::reach(std::span<const int32_t>) const {
  if (range_ > 0.0) return {};
  const float divisor = static_cast<float>(temp_);
  if (divisor == 1.0f) return {Reach::kNothing};
  return divisor > 0.0f ? Reach{} : Reach{Reach::kTop, 1};
}

void Temperature::apply(Candidates& candidates, Step& step) const {
  double temp = temp_;
  if (range_ > 0.0) {
    if (candidates.size() <= 1) return;
    Softmax& softmax = step.work.softmax;
    softmax.compute(candidates);
    const double share = std::max(0.0, softmax.entropy(candidates)) / std::log(static_cast<double>(candidates.size()));
    const double low = std::max(0.0, temp_ - range_), high = temp_ + range_;
    temp = std::min(low + (high - low) * std::pow(share, exponent_), static_cast<double>(FLT_MAX));
  }
  const float divisor = static_cast<float>(temp);
  if (divisor == 1.0f) return;
  // A quotient that float32 cannot hold is the limit of temperature zero.
  if (!(divisor > 0.0f) || std::fabs(candidates.max_logit() / divisor) > FLT_MAX) return candidates.keep_top(1);
  candidates.divide(divisor);
}

Reach LogitBias::reach(std::span<const int32_t>) const {
  if (std::ranges::any_of(biases_, [](const auto& b) { return b.second > 0.0f; })) return {};
  return {Reach::kLowers, biases_.size()};
}

void LogitBias::apply(Candidates& candidates, Step&) const {
  for (const auto& [token, bias] : biases_) {
    if (token < 0 || static_cast<size_t>(token) >= candidates.n_vocab()) {
      throw ArgumentError("[logit_bias] token out of range, expected 0 to " + std::to_string(candidates.n_vocab() - 1) +
                          ", got " + std::to_string(token));
    }
    if (const auto i = candidates.find(token)) candidates.set_logit(*i, candidates.logit(*i) + bias);
  }
}

}  // namespace gristmill::sampling
