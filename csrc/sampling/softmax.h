// Probabilities of candidates, not normalized: weight(i) = e^(logit(i) - max), so that the most likely one weighs
// exactly 1.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "sampling/candidates.h"

namespace gristmill::sampling {

class Softmax {
 public:
  // The candidates need a finite maximum.
  void compute(const Candidates& candidates);

  std::span<const float> weights() const { return {weights_.data(), size_}; }  // [candidates.size()]
  double total() const { return total_; }

  // -sum p ln p, in nats, with 0 ln 0 = 0.
  double entropy(const Candidates& candidates) const;

  // The first index at which the running total passes share * total(), 0 <= share < 1. Never one of weight zero.
  size_t pick(double share) const;

 private:
  std::vector<float> weights_;      // [candidates.size()], rounded up to whole blocks
  std::vector<double> block_sums_;  // one for each Candidates::kBlock weights
  size_t size_ = 0;
  double total_ = 0;
};

}  // namespace gristmill::sampling
