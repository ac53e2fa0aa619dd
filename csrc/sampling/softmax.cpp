#include "sampling/softmax.h"

#include <algorithm>
#include <cmath>

#include "sampling/fast_exp.h"

namespace gristmill::sampling {
namespace {

constexpr size_t kBlock = Candidates::kBlock;
constexpr size_t kLanes = 8;

double sum_block(const float* weights) {
  double lanes[kLanes] = {};
  for (size_t i = 0; i < kBlock; i += kLanes) {
    for (size_t l = 0; l < kLanes; ++l) lanes[l] += static_cast<double>(weights[i + l]);
  }
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

}  // namespace

void Softmax::compute(const Candidates& candidates) {
  size_ = candidates.size();
  const size_t blocks = (size_ + kBlock - 1) / kBlock;
  weights_.resize(blocks * kBlock);
  block_sums_.resize(blocks);
  const float max = candidates.max_logit();
  const std::span<const float> logits = candidates.logits();
  const std::span<const float> block_max = candidates.block_max();
  total_ = 0;
  for (size_t b = 0; b < blocks; ++b) {
    float* weights = weights_.data() + b * kBlock;
    const size_t n = std::min(kBlock, size_ - b * kBlock);
    if (!block_max.empty() && block_max[b] - max <= kExpFloor) {
      std::fill(weights, weights + kBlock, 0.0f);
      block_sums_[b] = 0;
      continue;
    }
    const float* from = logits.data() + b * kBlock;
    if (n == kBlock) {
      for (size_t i = 0; i < kBlock; ++i) weights[i] = exp_nonpositive(from[i] - max);
    } else {
      for (size_t i = 0; i < n; ++i) weights[i] = exp_nonpositive(from[i] - max);
      std::fill(weights + n, weights + kBlock, 0.0f);
    }
    block_sums_[b] = sum_block(weights);
    total_ += block_sums_[b];
  }
}

// With p = w / total and ln w = logit - max: -sum p ln p = ln total - sum w (logit - max) / total.
double Softmax::entropy(const Candidates& candidates) const {
  const double max = candidates.max_logit();
  double sum = 0;
  for (size_t i = 0; i < size_; ++i) {
    if (weights_[i] > 0) sum += weights_[i] * (candidates.logit(i) - max);
  }
  return std::log(total_) - sum / total_;
}

size_t Softmax::pick(double share) const {
  const double target = share * total_;
  double before = 0;
  for (size_t b = 0; b < block_sums_.size(); ++b) {
    if (before + block_sums_[b] <= target) {
      before += block_sums_[b];
      continue;
    }
    double running = before;
    for (size_t i = b * kBlock; i < (b + 1) * kBlock; ++i) {
      running += weights_[i];
      if (running > target && weights_[i] > 0) return i;
    }
    // The block's sum was added up in another order and is larger by a rounding; the next block starts from it.
    before += block_sums_[b];
  }
  size_t last = size_ - 1;
  while (last > 0 && weights_[last] == 0) --last;
  return last;
}

}  // namespace gristmill::sampling
