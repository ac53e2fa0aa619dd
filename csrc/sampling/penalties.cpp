#include "sampling/penalties.h"

#include <utility>

namespace gristmill::sampling {

Reach Penalties::reach(std::span<const int32_t> history) const {
  if (off()) return {Reach::kNothing};
  if (repeat_ < 1.0f || frequency_ < 0.0f || presence_ < 0.0f) return {};
  return {Reach::kLowers, count_distinct(last_tokens(history, last_n_))};
}

void Penalties::apply(Candidates& candidates, Step& step) const {
  if (off()) return;
  const std::span<const int32_t> window = last_tokens(step.history, last_n_);
  std::vector<int32_t>& tally = step.work.tally;
  std::vector<uint32_t>& distinct = step.work.indices;
  std::vector<int32_t>& counts = step.work.lengths;
  distinct.clear();
  counts.clear();
  for (const int32_t token : window) {
    if (tally[static_cast<size_t>(token)]++ == 0) distinct.push_back(static_cast<uint32_t>(token));
  }
  for (const uint32_t token : distinct) counts.push_back(std::exchange(tally[token], 0));
  for (size_t j = 0; j < distinct.size(); ++j) {
    const auto i = candidates.find(static_cast<int32_t>(distinct[j]));
    if (!i) continue;
    const float logit = candidates.logit(*i);
    const float scaled = logit <= 0 ? logit * repeat_ : logit / repeat_;
    candidates.set_logit(*i, scaled - (static_cast<float>(counts[j]) * frequency_ + presence_));
  }
}

}  // namespace gristmill::sampling
