// The tokens that may still be drawn, with their logits; what every sampler reads and changes.
//
// Always in ascending order of token id, in one of two forms:
//   whole:  logit(i) belongs to token i, for the whole vocabulary. The maximum of every kBlock logits is kept beside
//   them,
//           so that a search for the largest ones skips nearly all blocks.
//   listed: logit(i) belongs to token id(i). What is left after a truncation.
// The order by likelihood is never materialized for the whole vocabulary: truncations find their cut by a histogram and
// sort only the bucket in which it falls. Equally likely candidates rank by ascending token id.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace gristmill::sampling {

inline constexpr float kMasked = -std::numeric_limits<float>::infinity();

class Candidates {
 public:
  static constexpr size_t kBlock = 64;

  // Takes the logits of a whole vocabulary. -inf masks a token; NaN or +inf throws Error.
  void load(std::span<const float> logits);

  // Takes some tokens of a vocabulary, in ascending order of id, as if a truncation had left them.
  void load_listed(std::span<const int32_t> ids, std::span<const float> logits, size_t n_vocab);

  // Takes changed logits for the whole vocabulary (same length as loaded). Candidates stay candidates; a token that was
  // removed comes back if its logit is above -inf. NaN or +inf throws Error.
  void replace(std::span<const float> logits);

  size_t size() const { return size_; }
  size_t n_vocab() const { return n_vocab_; }
  bool whole() const { return whole_; }
  int32_t id(size_t i) const { return whole_ ? static_cast<int32_t>(i) : ids_[i]; }
  float logit(size_t i) const { return logits_[i]; }
  std::span<const float> logits() const { return {logits_.data(), size_}; }
  std::span<const float> block_max() const { return {block_max_.data(), whole_ ? n_blocks() : 0}; }

  // -inf when every candidate is masked.
  float max_logit() const;

  // The index of a token, if it is still a candidate.
  std::optional<size_t> find(int32_t token) const;

  // Throws Error for NaN and +inf.
  void set_logit(size_t i, float value);

  void divide(float divisor);

  // Candidates below the threshold get the logit -inf; they still count in size(), as in llama.cpp.
  void mask_below(double threshold);

  // Removes candidates below the threshold, but keeps the `at_least` most likely ones.
  void keep_from(double threshold, size_t at_least);

  // Removes all but the k most likely candidates (k >= 1).
  void keep_top(size_t k);

  // When a running total of masses ends a prefix: reaching the target, or passing it.
  enum class Until { kReached, kPassed };

  // Orders candidates by ascending key (>= 0, not NaN), then by likelihood, and keeps the shortest prefix of at least
  // `at_least` candidates, and of one, whose masses add up to `target`. key and mass: [size()]; without masses each
  // counts 1.
  void keep_prefix(std::span<const float> key, std::span<const float> mass, double target, Until until,
                   size_t at_least);

  // Keeps these indices, which must ascend.
  void keep(std::span<const uint32_t> indices);

  // Index a is more likely than index b, or equally likely and of lower id.
  bool more_likely(uint32_t a, uint32_t b) const {
    return logits_[a] > logits_[b] || (logits_[a] == logits_[b] && a < b);
  }

 private:
  size_t n_blocks() const { return (size_ + kBlock - 1) / kBlock; }
  void update_block(size_t block);
  bool keep_top_by_blocks(size_t k);
  [[noreturn]] void fail_non_finite(std::span<const float> logits) const;

  bool whole_ = true;
  size_t size_ = 0;
  size_t n_vocab_ = 0;
  std::vector<float> logits_;     // first size_ valid; in the whole form padded with -inf to a multiple of kBlock
  std::vector<int32_t> ids_;      // [size_], only in the listed form
  std::vector<float> block_max_;  // [n_blocks()], only in the whole form
  mutable std::optional<float> max_;

  // Work space, kept so that a step allocates nothing.
  std::vector<float> scratch_;
  std::vector<uint32_t> kept_;
  std::vector<uint32_t> boundary_;
  std::vector<double> bucket_mass_;
  std::vector<uint32_t> bucket_count_;
};

}  // namespace gristmill::sampling
