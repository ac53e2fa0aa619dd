// Samplers that change logits without regard to what was generated: temperature and bias.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "sampling/sampler.h"

namespace gristmill::sampling {

// Divides logits by a temperature; the most likely candidate alone for temp <= 0. With range > 0 the temperature
// depends on the entropy H of the n candidates (dynamic temperature, kalomaze 2024):
//   max(0, temp - range) + (temp + range - max(0, temp - range)) * (H / ln n)^exponent
class Temperature final : public Sampler {
 public:
  Temperature(double temp, double range, double exponent) : temp_(temp), range_(range), exponent_(exponent) {}
  Reach reach(std::span<const int32_t>) const override;
  void apply(Candidates& candidates, Step& step) const override;

 private:
  double temp_;
  double range_;
  double exponent_;
};

// Adds a bias to the logit of each given token; -inf removes it.
class LogitBias final : public Sampler {
 public:
  explicit LogitBias(std::vector<std::pair<int32_t, float>> biases) : biases_(std::move(biases)) {}
  Reach reach(std::span<const int32_t>) const override;
  void apply(Candidates& candidates, Step& step) const override;

 private:
  std::vector<std::pair<int32_t, float>> biases_;
};

}  // namespace gristmill::sampling
