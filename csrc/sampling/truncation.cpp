#include "sampling/truncation.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace gristmill::sampling {

void TopK::apply(Candidates& candidates, Step&) const {
  if (k_ > 0 && static_cast<uint64_t>(k_) < candidates.size()) candidates.keep_top(static_cast<size_t>(k_));
}

void TopP::apply(Candidates& candidates, Step& step) const {
  if (p_ >= 1.0) return;
  Softmax& softmax = step.work.softmax;
  softmax.compute(candidates);
  const float max = candidates.max_logit();
  std::vector<float>& key = step.work.keys;
  key.resize(candidates.size());
  for (size_t i = 0; i < key.size(); ++i) key[i] = max - candidates.logit(i);
  candidates.keep_prefix(key, softmax.weights(), p_ * softmax.total(), Candidates::Until::kReached, min_keep_);
}

void MinP::apply(Candidates& candidates, Step&) const {
  if (p_ <= 0.0) return;
  const double threshold = candidates.max_logit() + std::log(p_);
  candidates.keep_from(threshold, std::max<size_t>(min_keep_, 1));
}

void TypicalP::apply(Candidates& candidates, Step& step) const {
  if (p_ >= 1.0) return;
  Softmax& softmax = step.work.softmax;
  softmax.compute(candidates);
  const double max = candidates.max_logit();
  // Surprise minus entropy: (ln total - (logit - max)) - entropy.
  const double offset = std::log(softmax.total()) - softmax.entropy(candidates) + max;
  std::vector<float>& distance = step.work.keys;
  distance.resize(candidates.size());
  for (size_t i = 0; i < distance.size(); ++i) {
    distance[i] = static_cast<float>(std::fabs(offset - candidates.logit(i)));
  }
  candidates.keep_prefix(distance, softmax.weights(), p_ * softmax.total(), Candidates::Until::kPassed, min_keep_);
}

void TopNSigma::apply(Candidates& candidates, Step&) const {
  if (n_ <= 0.0 || candidates.size() <= 1) return;
  double sum = 0;
  size_t count = 0;
  for (const float x : candidates.logits()) {
    if (x != kMasked) {
      sum += x;
      ++count;
    }
  }
  const double mean = sum / static_cast<double>(count);
  double squares = 0;
  for (const float x : candidates.logits()) {
    if (x != kMasked) squares += (x - mean) * (x - mean);
  }
  candidates.mask_below(candidates.max_logit() - n_ * std::sqrt(squares / static_cast<double>(count)));
}

void Xtc::apply(Candidates& candidates, Step& step) const {
  if (off() || candidates.size() < 2) return;
  if (step.rng.uniform() > probability_) return;
  step.work.softmax.compute(candidates);
  const std::span<const float> weights = step.work.softmax.weights();
  const double cut = threshold_ * step.work.softmax.total();
  uint32_t least = 0;
  size_t qualified = 0;
  for (uint32_t i = 0; i < weights.size(); ++i) {
    if (weights[i] < cut) continue;
    if (qualified == 0 || candidates.more_likely(least, i)) least = i;
    ++qualified;
  }
  if (qualified < 2 || candidates.size() - (qualified - 1) < min_keep_) return;
  std::vector<uint32_t>& kept = step.work.indices;
  kept.clear();
  for (uint32_t i = 0; i < weights.size(); ++i) {
    if (weights[i] < cut || i == least) kept.push_back(i);
  }
  candidates.keep(kept);
}

void Greedy::apply(Candidates& candidates, Step&) const { candidates.keep_top(1); }

}  // namespace gristmill::sampling
