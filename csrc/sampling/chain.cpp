#include "sampling/chain.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "core/error.h"

namespace gristmill::sampling {
namespace {

// n_vocab 0: not known yet.
void check_token(int32_t token, size_t n_vocab) {
  if (token < 0 || (n_vocab != 0 && static_cast<size_t>(token) >= n_vocab)) {
    throw ArgumentError("[sampling] token out of range, expected 0 to " +
                        (n_vocab == 0 ? std::string("n_vocab - 1") : std::to_string(n_vocab - 1)) + ", got " +
                        std::to_string(token));
  }
}

constexpr double kNoMu = std::numeric_limits<double>::quiet_NaN();

}  // namespace

Chain::Chain(std::vector<SamplerPtr> samplers, uint32_t seed)
    : samplers_(std::move(samplers)), seed_(seed), rng_(seed), mirostat_mu_(kNoMu) {}

Chain::Chain(const Chain& other)
    : samplers_(other.samplers_),
      seed_(other.seed_),
      rng_(other.rng_),
      history_(other.history_),
      largest_token_(other.largest_token_),
      mirostat_mu_(other.mirostat_mu_),
      n_vocab_(other.n_vocab_) {}

void Chain::run(std::span<const float> logits, std::optional<std::span<const int32_t>> history, Rng& rng) {
  if (logits.empty()) throw ArgumentError("[sampling] no logits, expected [n_vocab], got length 0");
  if (logits.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw ArgumentError("[sampling] too many logits, expected at most 2147483647, got " +
                        std::to_string(logits.size()));
  }
  check_history(history, logits.size());
  n_vocab_ = logits.size();
  candidates_.load(logits);
  apply_samplers(history.value_or(history_), rng);
}

void Chain::check_history(std::optional<std::span<const int32_t>> history, size_t n_vocab) const {
  if (history) {
    for (const int32_t token : *history) check_token(token, n_vocab);
  } else if (!history_.empty()) {
    check_token(largest_token_, n_vocab);
  }
}

void Chain::apply_samplers(std::span<const int32_t> history, Rng& rng) {
  work_.tally.resize(n_vocab_);
  Step step{history, rng, mirostat_mu_, work_};
  for (size_t i = 0;; ++i) {
    if (candidates_.max_logit() == kMasked) {
      throw Error("[sampling] every token is masked" +
                  (i == 0 ? std::string() : " after sampler " + std::to_string(i)) +
                  ", expected at least one logit above -inf, got none");
    }
    if (i == samplers_.size()) break;
    samplers_[i]->apply(candidates_, step);
  }
  work_.softmax.compute(candidates_);
}

int32_t Chain::sample(std::span<const float> logits) {
  run(logits, std::nullopt, rng_);
  return draw();
}

std::optional<size_t> Chain::n_needed() const {
  size_t n = 0;
  for (const SamplerPtr& sampler : samplers_) {
    const Reach reach = sampler->reach(history_);
    if (reach.kind == Reach::kWhole) return std::nullopt;
    n += reach.n;
    if (reach.kind == Reach::kTop) return n;
  }
  return std::nullopt;
}

int32_t Chain::sample(std::span<const int32_t> ids, std::span<const float> logits, size_t n_vocab) {
  if (ids.empty() || ids.size() != logits.size())
    throw ArgumentError("[sampling] candidates, expected as many ids as logits and at least one, got " +
                        std::to_string(ids.size()) + " and " + std::to_string(logits.size()));
  check_history(std::nullopt, n_vocab);
  n_vocab_ = n_vocab;
  candidates_.load_listed(ids, logits, n_vocab);
  apply_samplers(history_, rng_);
  return draw();
}

int32_t Chain::draw() {
  const Softmax& softmax = work_.softmax;
  const size_t i = softmax.pick(rng_.uniform());
  if (!samplers_.empty()) {
    const double surprise = std::log2(softmax.total()) - std::log2(static_cast<double>(softmax.weights()[i]));
    mirostat_mu_ = samplers_.back()->after_draw(mirostat_mu_, surprise);
  }
  return candidates_.id(i);
}

Distribution Chain::distribution(std::span<const float> logits, std::optional<std::span<const int32_t>> history) {
  Rng rng = rng_;
  run(logits, history, rng);
  const std::span<const float> weights = work_.softmax.weights();
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < weights.size(); ++i) {
    if (weights[i] > 0) order.push_back(i);
  }
  std::sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) { return candidates_.more_likely(a, b); });
  Distribution result;
  result.ids.reserve(order.size());
  result.probs.reserve(order.size());
  for (const uint32_t i : order) {
    result.ids.push_back(candidates_.id(i));
    result.probs.push_back(static_cast<float>(weights[i] / work_.softmax.total()));
  }
  return result;
}

void Chain::accept(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) check_token(token, n_vocab_);
  for (const int32_t token : tokens) largest_token_ = std::max(largest_token_, token);
  history_.insert(history_.end(), tokens.begin(), tokens.end());
}

void Chain::reset(uint32_t seed) {
  seed_ = seed;
  rng_ = Rng(seed);
  history_.clear();
  largest_token_ = -1;
  mirostat_mu_ = kNoMu;
}

void Chain::replace(size_t index, SamplerPtr sampler) { samplers_.at(index) = std::move(sampler); }

}  // namespace gristmill::sampling
