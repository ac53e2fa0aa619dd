// Mirostat (Basu et al. 2020, "Mirostat: A Neural Text Decoding Algorithm that Directly Controls Perplexity"):
// truncates so that the surprise of the drawn tokens stays near the target tau. Surprises are in bits. mu starts at 2
// tau and moves by eta times the error after each draw. Has to be the last of its chain.
#pragma once

#include "sampling/sampler.h"

namespace gristmill::sampling {

class MirostatBase : public Sampler {
 public:
  MirostatBase(double tau, double eta) : tau_(tau), eta_(eta) {}
  double after_draw(double mu, double surprise) const override { return current(mu) - eta_ * (surprise - tau_); }

 protected:
  double current(double mu) const { return mu == mu ? mu : 2.0 * tau_; }

 private:
  double tau_;
  double eta_;
};

// Version 1: fits Zipf's exponent s to the most likely tokens, and keeps the k that give surprise mu under Zipf's law.
class Mirostat final : public MirostatBase {
 public:
  using MirostatBase::MirostatBase;
  void apply(Candidates& candidates, Step& step) const override;
};

// Version 2: keeps the candidates whose surprise is at most mu, and at least the most likely one.
class MirostatV2 final : public MirostatBase {
 public:
  using MirostatBase::MirostatBase;
  void apply(Candidates& candidates, Step& step) const override;
};

}  // namespace gristmill::sampling
