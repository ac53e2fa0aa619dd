// Samplers that remove candidates by rank or probability. `min_keep` is the number of candidates that stay in any case.
#pragma once

#include "sampling/sampler.h"

namespace gristmill::sampling {

// The k most likely; all if k <= 0.
class TopK final : public Sampler {
 public:
  explicit TopK(int64_t k) : k_(k) {}
  Reach reach(std::span<const int32_t>) const override {
    return k_ > 0 ? Reach{Reach::kTop, static_cast<size_t>(k_)} : Reach{Reach::kNothing};
  }
  void apply(Candidates& candidates, Step& step) const override;

 private:
  int64_t k_;
};

// Nucleus sampling (Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration"): the fewest most likely
// candidates whose probabilities add up to p. Off for p >= 1.
class TopP final : public Sampler {
 public:
  TopP(double p, size_t min_keep) : p_(p), min_keep_(min_keep) {}
  Reach reach(std::span<const int32_t>) const override { return {p_ >= 1.0 ? Reach::kNothing : Reach::kWhole}; }
  void apply(Candidates& candidates, Step& step) const override;

 private:
  double p_;
  size_t min_keep_;
};

// Min-p (Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs"): candidates
// at least p times as probable as the most likely one. Off for p <= 0.
class MinP final : public Sampler {
 public:
  MinP(double p, size_t min_keep) : p_(p), min_keep_(min_keep) {}
  Reach reach(std::span<const int32_t>) const override { return {p_ <= 0.0 ? Reach::kNothing : Reach::kWhole}; }
  void apply(Candidates& candidates, Step& step) const override;

 private:
  double p_;
  size_t min_keep_;
};

// Locally typical sampling (Meister et al. 2022): candidates whose surprise is nearest to the entropy, until their
// probabilities add up to more than p. Off for p >= 1.
class TypicalP final : public Sampler {
 public:
  TypicalP(double p, size_t min_keep) : p_(p), min_keep_(min_keep) {}
  Reach reach(std::span<const int32_t>) const override { return {p_ >= 1.0 ? Reach::kNothing : Reach::kWhole}; }
  void apply(Candidates& candidates, Step& step) const override;

 private:
  double p_;
  size_t min_keep_;
};

// Top-n-sigma (Tang et al. 2024, "Top-nsigma: Not All Logits Are You Need"): masks logits more than n standard
// deviations (of the unmasked logits) below the maximum. Off for n <= 0.
class TopNSigma final : public Sampler {
 public:
  explicit TopNSigma(double n) : n_(n) {}
  Reach reach(std::span<const int32_t>) const override { return {n_ <= 0.0 ? Reach::kNothing : Reach::kWhole}; }
  void apply(Candidates& candidates, Step& step) const override;

 private:
  double n_;
};

// Exclude top choices (p-e-w 2024): with the given probability, removes all candidates of at least `threshold` but the
// least likely of them. Off for threshold > 0.5, where at most one candidate could qualify.
class Xtc final : public Sampler {
 public:
  Xtc(double probability, double threshold, size_t min_keep)
      : probability_(probability), threshold_(threshold), min_keep_(min_keep) {}
  Reach reach(std::span<const int32_t>) const override { return {off() ? Reach::kNothing : Reach::kWhole}; }
  void apply(Candidates& candidates, Step& step) const override;

 private:
  bool off() const { return probability_ <= 0.0 || threshold_ > 0.5; }
  double probability_;
  double threshold_;
  size_t min_keep_;
};

// The most likely candidate only.
class Greedy final : public Sampler {
 public:
  Reach reach(std::span<const int32_t>) const override { return {Reach::kTop, 1}; }
  void apply(Candidates& candidates, Step& step) const override;
};

}  // namespace gristmill::sampling
