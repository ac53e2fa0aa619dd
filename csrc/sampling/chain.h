// Samplers in a row, then a draw from what they leave. Holds what changes from token to token: the accepted tokens, the
// generator and mirostat's mu.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "sampling/sampler.h"

namespace gristmill::sampling {

using SamplerPtr = std::shared_ptr<const Sampler>;

struct Distribution {
  std::vector<int32_t> ids;  // most likely first, ties by id
  std::vector<float> probs;  // same length, all above zero, sum 1
};

class Chain {
 public:
  Chain(std::vector<SamplerPtr> samplers, uint32_t seed);
  // A copy shares the samplers and has its own state.
  Chain(const Chain& other);
  Chain& operator=(const Chain&) = delete;

  // Draws a token; logits: [n_vocab]. Does not accept it. Takes one number of the generator (and one more for an active
  // xtc), and picks by the inverse of the cumulative distribution over ascending token ids.
  int32_t sample(std::span<const float> logits);

  // How many of the most likely tokens the next sample() has to see for what it would do with all; nullopt: all. That
  // is so where something, before anything else that looks at every token, leaves only so many; each token whose logit
  // may fall before that takes a place that one below the rest might get.
  std::optional<size_t> n_needed() const;
  // sample() with these alone, in ascending order of id: the n_needed() most likely, or more of them.
  int32_t sample(std::span<const int32_t> ids, std::span<const float> logits, size_t n_vocab);

  // What the next sample() would draw from, without any effect on the chain's state.
  // A history given here stands in for the accepted one.
  Distribution distribution(std::span<const float> logits,
                            std::optional<std::span<const int32_t>> history = std::nullopt);

  // Appends to the history. All or none of the tokens; out of range is an ArgumentError.
  void accept(std::span<const int32_t> tokens);
  // The vocabulary's size, for accept() before the first logits are seen.
  void expect_n_vocab(size_t n_vocab) { n_vocab_ = n_vocab; }
  // The state of a new chain of this seed, or of the old one.
  void reset(uint32_t seed);
  void reset() { reset(seed_); }
  void replace(size_t index, SamplerPtr sampler);

  uint32_t seed() const { return seed_; }
  std::span<const int32_t> history() const { return history_; }

 private:
  void run(std::span<const float> logits, std::optional<std::span<const int32_t>> history, Rng& rng);
  void check_history(std::optional<std::span<const int32_t>> history, size_t n_vocab) const;
  void apply_samplers(std::span<const int32_t> history, Rng& rng);  // to candidates_
  int32_t draw();

  std::vector<SamplerPtr> samplers_;
  uint32_t seed_;
  Rng rng_;
  std::vector<int32_t> history_;
  int32_t largest_token_ = -1;  // of the history
  double mirostat_mu_;
  size_t n_vocab_ = 0;  // of the last logits; 0 if not known yet
  Candidates candidates_;
  Workspace work_;
};

}  // namespace gristmill::sampling
