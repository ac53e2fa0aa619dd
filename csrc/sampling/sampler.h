// One link of a chain. A sampler is immutable, so that chains cloned from each other share it; whatever changes from
// one token to the next lives in the chain and is handed in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "sampling/candidates.h"
#include "sampling/rng.h"
#include "sampling/softmax.h"

namespace gristmill::sampling {

// Buffers that are kept from token to token: allocating for a whole vocabulary costs more than reading it.
struct Workspace {
  Softmax softmax;
  std::vector<float> keys;        // [candidates.size()]
  std::vector<uint32_t> indices;  // of candidates
  std::vector<int32_t> tally;     // [n_vocab], all zero between uses
  std::vector<int32_t> lengths;   // [history]
};

struct Step {
  std::span<const int32_t> history;  // accepted tokens, oldest first, all below candidates.n_vocab()
  Rng& rng;
  double mirostat_mu;  // bits; NaN until the first token is drawn
  Workspace& work;
};

// The last n of a history; all of it if n < 0.
inline std::span<const int32_t> last_tokens(std::span<const int32_t> history, int64_t n) {
  const bool all = n < 0 || static_cast<uint64_t>(n) >= history.size();
  return all ? history : history.last(static_cast<size_t>(n));
}

// What a sampler can do to a candidate list that holds the most likely tokens alone, for the same result as with the
// whole vocabulary.
struct Reach {
  enum Kind {
    kNothing,  // it is off
    kLowers,   // lowers the logits of n tokens at most, and raises none
    kTop,      // leaves the n most likely at most, whatever the others are
    kWhole,    // looks at all
  } kind = kWhole;
  size_t n = 0;
};

// Tokens that occur in a stretch of history.
inline size_t count_distinct(std::span<const int32_t> tokens) {
  std::vector<int32_t> sorted(tokens.begin(), tokens.end());
  std::sort(sorted.begin(), sorted.end());
  return static_cast<size_t>(std::unique(sorted.begin(), sorted.end()) - sorted.begin());
}

class Sampler {
 public:
  virtual ~Sampler() = default;

  virtual Reach reach(std::span<const int32_t> /*history*/) const { return {}; }

  // Changes or removes candidates. At least one of them is unmasked on entry, and at least one is left.
  virtual void apply(Candidates& candidates, Step& step) const = 0;

  // For the last sampler of a chain: what mirostat_mu becomes once a token of this surprise (-log2 p) was drawn.
  virtual double after_draw(double mirostat_mu, double /*surprise*/) const { return mirostat_mu; }
};

}  // namespace gristmill::sampling
