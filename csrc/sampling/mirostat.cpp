#include "sampling/mirostat.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

namespace gristmill::sampling {
namespace {

// How many of the most likely tokens the exponent is estimated from (m in the paper).
constexpr size_t kFitted = 100;

// Least squares through the origin of ln(p_i / p_i+1) against ln((i + 1) / i), equation 7 of the paper.
double zipf_exponent(const std::vector<float>& sorted_logits) {
  double xy = 0, xx = 0;
  for (size_t i = 0; i + 1 < sorted_logits.size(); ++i) {
    const double x = std::log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
    xy += x * (static_cast<double>(sorted_logits[i]) - sorted_logits[i + 1]);
    xx += x * x;
  }
  return xy / xx;
}

// Equation 8: the k of which the total surprise is mu, for n tokens that follow Zipf's law.
double zipf_rank(double s, double mu, double n) {
  const double e = s - 1;
  // e / (1 - n^-e) tends to 1 / ln n as e tends to 0.
  const double factor = std::fabs(e) < 1e-9 ? 1 / std::log(n) : e / (1 - std::pow(n, -e));
  return std::pow(factor * std::exp2(mu), 1 / s);
}

}  // namespace

void Mirostat::apply(Candidates& candidates, Step& step) const {
  std::vector<float>& top = step.work.keys;
  top.assign(candidates.logits().begin(), candidates.logits().end());
  const size_t fitted = std::min(kFitted, top.size());
  std::partial_sort(top.begin(), top.begin() + static_cast<ptrdiff_t>(fitted), top.end(), std::greater<>());
  top.resize(fitted);
  // Masked tokens say nothing about the exponent.
  while (top.back() == kMasked) top.pop_back();
  if (top.size() < 2) return candidates.keep_top(1);
  const double k = zipf_rank(zipf_exponent(top), current(step.mirostat_mu), static_cast<double>(candidates.n_vocab()));
  const double size = static_cast<double>(candidates.size());
  candidates.keep_top(static_cast<size_t>(k < size ? std::max(k, 1.0) : size));
}

void MirostatV2::apply(Candidates& candidates, Step& step) const {
  Softmax& softmax = step.work.softmax;
  softmax.compute(candidates);
  // -log2(e^(logit - max) / total) <= mu
  const double log2_total = std::log2(softmax.total());
  const double threshold = candidates.max_logit() + (log2_total - current(step.mirostat_mu)) * std::log(2.0);
  candidates.keep_from(threshold, 1);
}

}  // namespace gristmill::sampling
