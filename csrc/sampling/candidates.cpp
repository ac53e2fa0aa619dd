#include "sampling/candidates.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>
#include <string>

#include "core/error.h"

namespace gristmill::sampling {
namespace {

// The maximum by halving, and the check as a count: loops without a chain through their iterations, which compilers
// vectorize. A NaN may get lost in the maximum; finite_or_masked finds it.
float max_of_block(const float* logits) {
  constexpr size_t kHalf = Candidates::kBlock / 2;
  float max[kHalf];
  for (size_t i = 0; i < kHalf; ++i) max[i] = logits[i] > logits[i + kHalf] ? logits[i] : logits[i + kHalf];
  for (size_t n = kHalf / 2; n >= 4; n /= 2) {
    for (size_t i = 0; i < n; ++i) max[i] = max[i] > max[i + n] ? max[i] : max[i + n];
  }
  return std::max(std::max(max[0], max[1]), std::max(max[2], max[3]));
}

bool finite_or_masked(const float* logits, size_t n) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; ++i) bad += logits[i] <= FLT_MAX ? 0u : 1u;
  return bad == 0;
}

// Maps keys (>= 0, not NaN) to buckets in ascending order: the float's exponent and five bits of its mantissa.
constexpr uint32_t kBucketShift = 18;
constexpr size_t kBuckets = 4352;  // the last one also holds all keys from 128 up
// -0 + 0 is +0: the difference of a -0 and a 0 belongs to the first bucket, not to the last.
size_t bucket_of(float key) {
  return std::min<size_t>(std::bit_cast<uint32_t>(key + 0.0f) >> kBucketShift, kBuckets - 1);
}

// Sorting everything is cheaper than clearing the histogram below this many candidates.
constexpr size_t kSortAll = 1024;

}  // namespace

void Candidates::fail_non_finite(std::span<const float> logits) const {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] <= FLT_MAX)) {
      throw Error("[sampling] non-finite logits, expected finite or -inf, got " +
                  std::string(std::isnan(logits[i]) ? "nan" : "inf") + " for token " + std::to_string(i));
    }
  }
  throw Error("[sampling] non-finite logits");
}

void Candidates::load(std::span<const float> logits) {
  n_vocab_ = size_ = logits.size();
  whole_ = true;
  max_.reset();
  const size_t blocks = n_blocks();
  logits_.resize(blocks * kBlock);
  block_max_.resize(blocks);
  std::copy(logits.begin(), logits.end(), logits_.begin());
  std::fill(logits_.begin() + static_cast<ptrdiff_t>(size_), logits_.end(), kMasked);
  bool good = true;
  for (size_t b = 0; b < blocks; ++b) {
    const float* block = logits_.data() + b * kBlock;
    good &= finite_or_masked(block, kBlock);
    block_max_[b] = max_of_block(block);
  }
  if (!good) fail_non_finite(logits);
}

void Candidates::load_listed(std::span<const int32_t> ids, std::span<const float> logits, size_t n_vocab) {
  n_vocab_ = n_vocab;
  size_ = ids.size();
  whole_ = false;
  max_.reset();
  ids_.assign(ids.begin(), ids.end());
  logits_.assign(logits.begin(), logits.end());
  for (size_t i = 0; i < size_; ++i) {
    if (ids[i] < 0 || static_cast<size_t>(ids[i]) >= n_vocab || (i > 0 && ids[i] <= ids[i - 1]))
      throw ArgumentError("[sampling] candidates, expected ascending tokens below " + std::to_string(n_vocab) +
                          ", got " + std::to_string(ids[i]));
    if (!(logits[i] <= FLT_MAX)) {
      throw Error("[sampling] non-finite logits, expected finite or -inf, got " +
                  std::string(std::isnan(logits[i]) ? "nan" : "inf") + " for token " + std::to_string(ids[i]));
    }
  }
}

void Candidates::replace(std::span<const float> logits) {
  if (whole_) return load(logits);
  if (!finite_or_masked(logits.data(), logits.size())) fail_non_finite(logits);
  std::vector<int32_t> ids;
  size_t old = 0;
  for (size_t token = 0; token < logits.size(); ++token) {
    const bool was = old < size_ && ids_[old] == static_cast<int32_t>(token);
    old += was;
    if (was || logits[token] > kMasked) ids.push_back(static_cast<int32_t>(token));
  }
  ids_ = std::move(ids);
  size_ = ids_.size();
  for (size_t i = 0; i < size_; ++i) logits_[i] = logits[static_cast<size_t>(ids_[i])];
  max_.reset();
}

float Candidates::max_logit() const {
  if (!max_) {
    const float* first = whole_ ? block_max_.data() : logits_.data();
    const size_t n = whole_ ? n_blocks() : size_;
    float max = kMasked;
    for (size_t i = 0; i < n; ++i) max = std::max(max, first[i]);
    max_ = max;
  }
  return *max_;
}

std::optional<size_t> Candidates::find(int32_t token) const {
  if (whole_) {
    if (token < 0 || static_cast<size_t>(token) >= size_) return std::nullopt;
    return static_cast<size_t>(token);
  }
  const auto end = ids_.begin() + static_cast<ptrdiff_t>(size_);
  const auto it = std::lower_bound(ids_.begin(), end, token);
  if (it == end || *it != token) return std::nullopt;
  return static_cast<size_t>(it - ids_.begin());
}

void Candidates::update_block(size_t block) { block_max_[block] = max_of_block(logits_.data() + block * kBlock); }

void Candidates::set_logit(size_t i, float value) {
  if (!(value <= FLT_MAX)) {
    throw Error("[sampling] a penalty or bias made the logit of token " + std::to_string(id(i)) +
                " non-finite, expected finite or -inf, got " + (std::isnan(value) ? "nan" : "inf"));
  }
  logits_[i] = value;
  max_.reset();
  if (whole_) update_block(i / kBlock);
}

void Candidates::divide(float divisor) {
  const size_t n = whole_ ? n_blocks() * kBlock : size_;
  for (size_t i = 0; i < n; ++i) logits_[i] /= divisor;
  // Rounding is monotone, so the quotient of the maximum is the maximum of the quotients.
  if (whole_) {
    for (size_t b = 0; b < n_blocks(); ++b) block_max_[b] /= divisor;
  }
  max_.reset();
}

void Candidates::mask_below(double threshold) {
  const auto mask = [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      if (logits_[i] < threshold) logits_[i] = kMasked;
    }
  };
  max_.reset();
  if (!whole_) return mask(0, size_);
  for (size_t b = 0; b < n_blocks(); ++b) {
    mask(b * kBlock, (b + 1) * kBlock);
    if (block_max_[b] < threshold) block_max_[b] = kMasked;
  }
}

void Candidates::keep(std::span<const uint32_t> indices) {
  if (indices.size() == size_) return;
  if (whole_) ids_.resize(std::max(ids_.size(), indices.size()));
  // In place: the indices ascend, so nothing is overwritten before it is read.
  for (size_t i = 0; i < indices.size(); ++i) {
    ids_[i] = whole_ ? static_cast<int32_t>(indices[i]) : ids_[indices[i]];
    logits_[i] = logits_[indices[i]];
  }
  whole_ = false;
  size_ = indices.size();
  max_.reset();
}

void Candidates::keep_from(double threshold, size_t at_least) {
  kept_.clear();
  const auto gather = [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) {
      if (logits_[i] >= threshold) kept_.push_back(static_cast<uint32_t>(i));
    }
  };
  if (whole_) {
    for (size_t b = 0; b < n_blocks(); ++b) {
      if (block_max_[b] >= threshold) gather(b * kBlock, std::min(size_, (b + 1) * kBlock));
    }
  } else {
    gather(0, size_);
  }
  if (kept_.size() < at_least) return keep_top(at_least);
  keep(kept_);
}

// The k-th largest block maximum is a lower bound of the k-th largest logit: k blocks each hold a logit that large.
bool Candidates::keep_top_by_blocks(size_t k) {
  if (!whole_ || k > n_blocks()) return false;
  scratch_.assign(block_max_.begin(), block_max_.begin() + static_cast<ptrdiff_t>(n_blocks()));
  const auto kth = scratch_.begin() + static_cast<ptrdiff_t>(k - 1);
  std::nth_element(scratch_.begin(), kth, scratch_.end(), std::greater<>());
  const float bound = *kth;
  if (bound == kMasked) return false;
  kept_.clear();
  for (size_t b = 0; b < n_blocks(); ++b) {
    if (block_max_[b] < bound) continue;
    for (size_t i = b * kBlock; i < std::min(size_, (b + 1) * kBlock); ++i) {
      if (logits_[i] >= bound) kept_.push_back(static_cast<uint32_t>(i));
    }
  }
  if (kept_.size() > k) {
    const auto end = kept_.begin() + static_cast<ptrdiff_t>(k);
    std::nth_element(kept_.begin(), end, kept_.end(), [this](uint32_t a, uint32_t b) { return more_likely(a, b); });
    kept_.resize(k);
    std::sort(kept_.begin(), kept_.end());
  }
  keep(kept_);
  return true;
}

void Candidates::keep_top(size_t k) {
  if (k >= size_ || keep_top_by_blocks(k)) return;
  const float max = max_logit();
  scratch_.resize(size_);
  // Without a finite maximum all are masked and equal.
  for (size_t i = 0; i < size_; ++i) scratch_[i] = max == kMasked ? 0.0f : max - logits_[i];
  keep_prefix(scratch_, {}, 0.0, Until::kReached, k);
}

void Candidates::keep_prefix(std::span<const float> key, std::span<const float> mass, double target, Until until,
                             size_t at_least) {
  at_least = std::max<size_t>(at_least, 1);
  const auto mass_of = [&](size_t i) { return mass.empty() ? 1.0 : static_cast<double>(mass[i]); };
  const auto done = [&](double total, size_t count) {
    return count >= at_least && (until == Until::kReached ? total >= target : total > target);
  };
  const auto before = [&](uint32_t a, uint32_t b) {
    return key[a] < key[b] || (key[a] == key[b] && more_likely(a, b));
  };

  double total = 0;
  size_t count = 0;
  size_t cut_bucket = 0;
  const bool use_buckets = size_ > kSortAll;
  boundary_.clear();
  if (use_buckets) {
    bucket_mass_.assign(kBuckets, 0.0);
    bucket_count_.assign(kBuckets, 0);
    for (size_t i = 0; i < size_; ++i) {
      const size_t bucket = bucket_of(key[i]);
      bucket_mass_[bucket] += mass_of(i);
      ++bucket_count_[bucket];
    }
    while (cut_bucket < kBuckets && !done(total + bucket_mass_[cut_bucket], count + bucket_count_[cut_bucket])) {
      total += bucket_mass_[cut_bucket];
      count += bucket_count_[cut_bucket];
      ++cut_bucket;
    }
    if (cut_bucket == kBuckets) return;
    for (size_t i = 0; i < size_; ++i) {
      if (bucket_of(key[i]) == cut_bucket) boundary_.push_back(static_cast<uint32_t>(i));
    }
  } else {
    for (size_t i = 0; i < size_; ++i) boundary_.push_back(static_cast<uint32_t>(i));
  }

  std::sort(boundary_.begin(), boundary_.end(), before);
  size_t taken = 0;
  do {
    total += mass_of(boundary_[taken]);
    ++count;
    ++taken;
  } while (taken < boundary_.size() && !done(total, count));

  if (!use_buckets) {
    boundary_.resize(taken);
    std::sort(boundary_.begin(), boundary_.end());
    return keep(boundary_);
  }
  const uint32_t last = boundary_[taken - 1];
  // Written always and counted by the condition: which candidates stay is as good as random, and a branch on it would
  // often be predicted wrongly.
  kept_.resize(std::max(kept_.size(), size_));
  size_t n_kept = 0;
  for (size_t i = 0; i < size_; ++i) {
    const size_t bucket = bucket_of(key[i]);
    const uint32_t index = static_cast<uint32_t>(i);
    kept_[n_kept] = index;
    n_kept += bucket == cut_bucket ? !before(last, index) : bucket < cut_bucket;
  }
  keep({kept_.data(), n_kept});
}

}  // namespace gristmill::sampling
