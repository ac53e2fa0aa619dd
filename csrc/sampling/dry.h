// DRY, "don't repeat yourself" (p-e-w 2024, text-generation-webui #5677): a token that would extend a repetition of the
// context's end is penalized exponentially in the repetition's length. Sequence breakers are never part of a
// repetition.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "sampling/sampler.h"

namespace gristmill::sampling {

class Dry final : public Sampler {
 public:
  // Tokens over which a breaker may stretch: `head` holds its beginning and `tail` are the tokens of the rest.
  struct Breaker {
    int32_t head;
    std::vector<int32_t> tail;
  };

  // Off if multiplier == 0, base < 1 or last_n == 0; last_n < 0 means the whole context.
  Dry(float multiplier, float base, int64_t allowed_length, int64_t last_n, std::span<const Breaker> breakers);
  Reach reach(std::span<const int32_t> history) const override;
  void apply(Candidates& candidates, Step& step) const override;

 private:
  bool off() const { return multiplier_ == 0.0f || base_ < 1.0f || last_n_ == 0; }
  // Number of tokens since the last sequence breaker: no repetition counts for more.
  int64_t since_breaker(std::span<const int32_t> window) const;
  bool is_breaker(int32_t token) const;

  float multiplier_;
  float base_;
  int64_t allowed_length_;
  int64_t last_n_;
  std::unordered_map<int32_t, std::vector<std::vector<int32_t>>> tails_;  // by head
};

// Where the text of a token contains a breaker, or ends with the beginning of one.
struct BreakerMatch {
  int32_t token;
  uint32_t matched;  // bytes of the breaker that the token holds; all of them if it contains it
};

// texts: the bytes of all tokens one after the other; token i is texts[offsets[i] .. offsets[i + 1]).
std::vector<BreakerMatch> match_breaker(std::string_view texts, std::span<const int64_t> offsets,
                                        std::string_view breaker);

}  // namespace gristmill::sampling
