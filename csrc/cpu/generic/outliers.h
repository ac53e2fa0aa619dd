// Which activations of a row keep more than 8 bits. A handful of channels a token are so much larger than their
// neighbours that the scale they force on their group of 32 carries most of the error of int8 activations; taking four
// of them out of their groups leaves a quarter of the divergence (docs/performance.md).
#pragma once

#include <cstdint>

#include "cpu/generic/activation_scale.h"

namespace gristmill::cpu {
namespace {

// At most so many a row; short rows have fewer, so that their cost stays a small share.
constexpr int kMaxOutliers = 4;
// How far above the second largest of its group a value must stand: less than a bit is not worth the work.
constexpr float kOutlierRatio = 2.0f;
// What the upper bits can hold: |128 high + low| with high an int8.
constexpr float kOutlierMax = 127.0f * 128.0f;

struct GroupPeak {
  float first, second;  // largest magnitudes of a group, NaN as the largest
};

// What becomes 127 in a group without its outlier. One beyond what its upper bits hold lends some of its size.
inline float outlier_scale_peak(GroupPeak p) {
  const float least = p.first * (127.0f / kOutlierMax);
  return p.second > least ? p.second : least;
}

// The outliers of one row: the groups that gain most, at most one value in each.
class RowOutliers {
 public:
  // peaks: of the row's n groups of 32, `stride` apart.
  void choose(const GroupPeak* peaks, int64_t n, int64_t stride = 1) {
    n_ = 0;
    const int limit = n < 24 ? 2 : kMaxOutliers;
    float gains[kMaxOutliers];
    for (int64_t g = 0; g < n; ++g) {
      const GroupPeak p = peaks[g * stride];
      // False for NaN and infinity as well: a group that holds them is spoiled whole.
      if (!(p.first >= kOutlierRatio * p.second && p.first <= 1e18f)) continue;
      const float gain = p.first * p.first - p.second * p.second;
      if (!(gain > 0.0f) || (n_ == limit && !(gain > gains[limit - 1]))) continue;
      int i = n_ < limit ? n_++ : limit - 1;
      for (; i > 0 && gains[i - 1] < gain; --i) {
        gains[i] = gains[i - 1];
        groups_[i] = groups_[i - 1];
      }
      gains[i] = gain;
      groups_[i] = g;
    }
  }

  int size() const { return n_; }
  int64_t group(int i) const { return groups_[i]; }
  bool has(int64_t group) const {
    for (int i = 0; i < n_; ++i)
      if (groups_[i] == group) return true;
    return false;
  }

 private:
  int64_t groups_[kMaxOutliers];
  int n_ = 0;
};

}  // namespace
}  // namespace gristmill::cpu
