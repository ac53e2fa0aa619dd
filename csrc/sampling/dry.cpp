#include "sampling/dry.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

namespace gristmill::sampling {
namespace {

// z[k] = length of the longest common suffix of the window and the window without its last k tokens, for 1 <= k < n
// (the Z function of the reversed window, Gusfield 1997): linear in n.
void suffix_repeats(std::span<const int32_t> window, std::vector<int32_t>& z) {
  const size_t n = window.size();
  const auto from_end = [&](size_t i) { return window[n - 1 - i]; };
  z.assign(n, 0);
  size_t left = 0,
         right = 0;  // the match that reaches farthest: from_end(left .. right) equals from_end(0 .. right - left)
  for (size_t k = 1; k < n; ++k) {
    size_t length = k < right ? std::min(right - k, static_cast<size_t>(z[k - left])) : 0;
    while (k + length < n && from_end(length) == from_end(k + length)) ++length;
    z[k] = static_cast<int32_t>(length);
    if (k + length > right) {
      left = k;
      right = k + length;
    }
  }
}

}  // namespace

Dry::Dry(float multiplier, float base, int64_t allowed_length, int64_t last_n, std::span<const Breaker> breakers)
    : multiplier_(multiplier), base_(base), allowed_length_(allowed_length), last_n_(last_n) {
  for (const Breaker& breaker : breakers) {
    auto& tails = tails_[breaker.head];
    if (std::find(tails.begin(), tails.end(), breaker.tail) == tails.end()) tails.push_back(breaker.tail);
  }
}

bool Dry::is_breaker(int32_t token) const {
  const auto it = tails_.find(token);
  return it != tails_.end() &&
         std::any_of(it->second.begin(), it->second.end(), [](const auto& tail) { return tail.empty(); });
}

int64_t Dry::since_breaker(std::span<const int32_t> window) const {
  for (size_t after = 0; after < window.size(); ++after) {
    const size_t head = window.size() - 1 - after;
    const auto it = tails_.find(window[head]);
    if (it == tails_.end()) continue;
    int64_t longest = -1;
    for (const std::vector<int32_t>& tail : it->second) {
      if (tail.size() <= after &&
          std::equal(tail.begin(), tail.end(), window.begin() + static_cast<ptrdiff_t>(head) + 1)) {
        longest = std::max(longest, static_cast<int64_t>(tail.size()));
      }
    }
    if (longest >= 0) return static_cast<int64_t>(after) - longest;
  }
  return static_cast<int64_t>(window.size());
}

Reach Dry::reach(std::span<const int32_t> history) const {
  if (off()) return {Reach::kNothing};
  if (multiplier_ < 0.0f) return {};
  return {Reach::kLowers, count_distinct(last_tokens(history, last_n_))};
}

void Dry::apply(Candidates& candidates, Step& step) const {
  if (off()) return;
  const std::span<const int32_t> window = last_tokens(step.history, last_n_);
  const int64_t n = static_cast<int64_t>(window.size());
  if (n <= allowed_length_) return;
  const int64_t limit = since_breaker(window);
  if (limit < allowed_length_) return;

  suffix_repeats(window, step.work.lengths);
  const std::vector<int32_t>& repeats = step.work.lengths;
  // The longest repetition that each token would extend, plus one so that zero means none.
  std::vector<int32_t>& longest = step.work.tally;
  std::vector<uint32_t>& extending = step.work.indices;
  extending.clear();
  for (int64_t k = 1; k < n; ++k) {
    const int64_t length = std::min<int64_t>(repeats[static_cast<size_t>(k)], limit);
    if (length < allowed_length_) continue;
    const size_t token = static_cast<size_t>(window[static_cast<size_t>(n - k)]);
    if (longest[token] == 0) extending.push_back(static_cast<uint32_t>(token));
    longest[token] = std::max(longest[token], static_cast<int32_t>(length) + 1);
  }

  // Beyond this exponent float32 overflows.
  const double max_exponent = base_ > 1.000001f ? std::floor(std::log(FLT_MAX) / std::log(base_)) : 0.0;
  for (const uint32_t token : extending) {
    double exponent = static_cast<double>(longest[token] - 1 - allowed_length_);
    longest[token] = 0;
    if (max_exponent > 0) exponent = std::min(exponent, max_exponent);
    const auto i = candidates.find(static_cast<int32_t>(token));
    if (!i || is_breaker(static_cast<int32_t>(token))) continue;
    const double penalty = multiplier_ * std::pow(static_cast<double>(base_), exponent);
    const double bounded = std::clamp<double>(penalty, -FLT_MAX, FLT_MAX);
    candidates.set_logit(*i, std::clamp(candidates.logit(*i) - static_cast<float>(bounded), kMasked, FLT_MAX));
  }
}

std::vector<BreakerMatch> match_breaker(std::string_view texts, std::span<const int64_t> offsets,
                                        std::string_view breaker) {
  std::vector<BreakerMatch> matches;
  for (size_t token = 0; token + 1 < offsets.size(); ++token) {
    const std::string_view text =
        texts.substr(static_cast<size_t>(offsets[token]), static_cast<size_t>(offsets[token + 1] - offsets[token]));
    if (text.find(breaker) != std::string_view::npos) {
      matches.push_back({static_cast<int32_t>(token), static_cast<uint32_t>(breaker.size())});
      continue;
    }
    const size_t longest = std::min(text.size(), breaker.size() - 1);
    for (size_t length = 1; length <= longest; ++length) {
      if (text.ends_with(breaker.substr(0, length))) {
        matches.push_back({static_cast<int32_t>(token), static_cast<uint32_t>(length)});
      }
    }
  }
  return matches;
}

}  // namespace gristmill::sampling
