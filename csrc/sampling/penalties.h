// Penalties on tokens that occur among the last `last_n` accepted ones.
#pragma once

#include "sampling/sampler.h"

namespace gristmill::sampling {

// For a token that occurs c > 0 times in the window:
//   repeat (Keskar et al. 2019, "CTRL"): logit / repeat where it is positive, logit * repeat otherwise (the paper
//   divides always, which would favour tokens of negative logit); then logit - c * frequency - presence.
class Penalties final : public Sampler {
 public:
  Penalties(int64_t last_n, float repeat, float frequency, float presence)
      : last_n_(last_n), repeat_(repeat), frequency_(frequency), presence_(presence) {}
  Reach reach(std::span<const int32_t> history) const override;
  void apply(Candidates& candidates, Step& step) const override;

 private:
  bool off() const { return last_n_ <= 0 || (repeat_ == 1.0f && frequency_ == 0.0f && presence_ == 0.0f); }

  int64_t last_n_;
  float repeat_;
  float frequency_;
  float presence_;
};

}  // namespace gristmill::sampling
