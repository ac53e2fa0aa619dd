// Random chains over random logits, with ties, masks, infinities and NaN: whatever comes out is a distribution over
// tokens of the vocabulary, or a typed error after which the chain still works. Meant to run under ASan and UBSan.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "sampling/chain.h"
#include "sampling/dry.h"
#include "sampling/fast_exp.h"
#include "sampling/mirostat.h"
#include "sampling/penalties.h"
#include "sampling/shaping.h"
#include "sampling/truncation.h"

namespace gristmill::sampling {
namespace {

std::mt19937 bits(1);

int64_t integer(int64_t low, int64_t high) { return low + static_cast<int64_t>(bits() % (high - low + 1)); }
double real(double low, double high) { return low + (high - low) * (bits() / 4294967296.0); }
template <typename T, size_t n>
T one_of(const T (&values)[n]) {
  return values[bits() % n];
}

SamplerPtr random_sampler(bool last) {
  const size_t min_keep = static_cast<size_t>(integer(0, 3));
  const double p = one_of({-1.0, 0.0, 1e-30, 0.3, 0.9, 0.999999, 1.0, 2.0});
  switch (integer(0, last ? 12 : 10)) {
    case 0:
      return std::make_shared<TopK>(one_of<int64_t>({-1, 0, 1, 2, 40, 3000, INT64_MAX}));
    case 1:
      return std::make_shared<TopP>(p, min_keep);
    case 2:
      return std::make_shared<MinP>(p, min_keep);
    case 3:
      return std::make_shared<TypicalP>(p, min_keep);
    case 4:
      return std::make_shared<TopNSigma>(real(-1, 4));
    case 5:
      return std::make_shared<Xtc>(real(0, 1.2), real(-0.1, 0.6), min_keep);
    case 6:
      return std::make_shared<Temperature>(one_of({-1.0, 0.0, 1e-38, 0.5, 1.0, 3e38}), one_of({0.0, 0.5, 3e38}),
                                           real(-3, 3));
    case 7: {
      std::vector<std::pair<int32_t, float>> biases;
      for (int64_t i = integer(0, 3); i > 0; --i) {
        biases.emplace_back(static_cast<int32_t>(integer(0, 9)), one_of({kMasked, -2.0f, 2.0f, FLT_MAX}));
      }
      return std::make_shared<LogitBias>(biases);
    }
    case 8:
      return std::make_shared<Penalties>(one_of<int64_t>({0, 1, 64, 100000}), one_of({0.1f, 1.0f, 1.5f}),
                                         one_of({0.0f, 0.5f, -3e38f, 3e38f}), one_of({0.0f, 1.0f}));
    case 9: {
      std::vector<Dry::Breaker> breakers;
      for (int64_t i = integer(0, 2); i > 0; --i) {
        std::vector<int32_t> tail(static_cast<size_t>(integer(0, 2)), static_cast<int32_t>(integer(0, 3)));
        breakers.push_back({static_cast<int32_t>(integer(0, 3)), tail});
      }
      return std::make_shared<Dry>(one_of({0.0f, 0.8f, -1.0f, 3e38f}), one_of({0.5f, 1.0f, 1.75f, 3e38f}),
                                   one_of<int64_t>({0, 1, 2, 5}), one_of<int64_t>({-1, 0, 1, 64}), breakers);
    }
    case 10:
      return std::make_shared<Greedy>();
    case 11:
      return std::make_shared<Mirostat>(real(0, 10), real(0, 1));
    default:
      return std::make_shared<MirostatV2>(real(0, 10), real(0, 1));
  }
}

// Exactly as long as the vocabulary, so that ASan sees a read beyond it.
std::vector<float> random_logits(size_t n) {
  std::vector<float> logits(n);
  const double scale = one_of({0.0, 1.0, 10.0, 1e37});
  const int64_t kind = integer(0, 4);
  for (float& x : logits) {
    x = static_cast<float>(real(-scale, scale));
    if (kind == 1) x = std::round(x);
    if (kind == 2 && integer(0, 9) != 0) x = kMasked;
    if (kind == 3) x = one_of({FLT_MAX, -FLT_MAX, FLT_MIN, -0.0f, 0.0f});
  }
  if (kind == 4 && integer(0, 3) == 0) logits[bits() % n] = one_of({NAN, -kMasked});
  return logits;
}

bool refused_rightly(const std::string& what) {
  return what.find("non-finite") != std::string::npos || what.find("masked") != std::string::npos ||
         what.find("out of range") != std::string::npos;
}

void check_distribution(const Distribution& d, size_t n, int trial) {
  CHECK(!d.ids.empty() && d.ids.size() == d.probs.size(), "trial %d", trial);
  double sum = 0;
  for (size_t i = 0; i < d.ids.size(); ++i) {
    CHECK(d.ids[i] >= 0 && static_cast<size_t>(d.ids[i]) < n, "trial %d", trial);
    CHECK(d.probs[i] >= 0 && (i == 0 || d.probs[i] <= d.probs[i - 1]), "trial %d", trial);
    sum += d.probs[i];
  }
  CHECK(std::fabs(sum - 1) < 1e-4, "trial %d: sum %g", trial, sum);
}

void random_chains() {
  for (int trial = 0; trial < 4000; ++trial) {
    const size_t n = static_cast<size_t>(one_of<int64_t>({1, 2, 10, 63, 64, 65, 1000, 1025, 4099}));
    std::vector<SamplerPtr> samplers;
    for (int64_t i = integer(0, 6); i > 0; --i) samplers.push_back(random_sampler(i == 1));
    Chain chain(samplers, bits());
    for (int step = 0; step < 4; ++step) {
      const std::vector<float> logits = random_logits(n);
      try {
        const Distribution d = chain.distribution(logits);
        check_distribution(d, n, trial);
        Chain copy(chain);
        const int32_t token = chain.sample(logits);
        CHECK(copy.sample(logits) == token, "trial %d", trial);
        CHECK(std::find(d.ids.begin(), d.ids.end(), token) != d.ids.end(), "trial %d: token %d", trial, token);
        std::vector<int32_t> accepted(static_cast<size_t>(integer(1, 20)), token);
        for (int32_t& t : accepted) t = integer(0, 1) ? t : static_cast<int32_t>(bits() % std::min<size_t>(n, 4));
        chain.accept(accepted);
      } catch (const Error& e) {
        CHECK(refused_rightly(e.what()), "trial %d: %s", trial, e.what());
      }
    }
    chain.reset();
    try {
      chain.sample(std::vector<float>(n, 0.0f));
    } catch (const Error& e) {
      CHECK(refused_rightly(e.what()), "trial %d: %s", trial, e.what());
    }
  }
}

// The same cut whether it is found by sorting, by block maxima or by buckets.
void keep_top_agrees() {
  for (int trial = 0; trial < 500; ++trial) {
    const size_t n = static_cast<size_t>(integer(1, 3000));
    std::vector<float> logits(n);
    for (float& x : logits) x = integer(0, 1) ? std::round(static_cast<float>(real(-5, 5))) : kMasked;
    std::vector<uint32_t> order(n);
    for (uint32_t i = 0; i < n; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return logits[a] > logits[b]; });
    const size_t k = static_cast<size_t>(integer(1, static_cast<int64_t>(n)));
    order.resize(k);
    std::sort(order.begin(), order.end());
    Candidates candidates;
    candidates.load(logits);
    candidates.keep_top(k);
    CHECK(candidates.size() == k, "trial %d", trial);
    for (size_t i = 0; i < candidates.size(); ++i) {
      CHECK(candidates.id(i) == static_cast<int32_t>(order[i]) && candidates.logit(i) == logits[order[i]], "trial %d",
            trial);
    }
  }
}

void exponential_is_accurate() {
  for (double x = 0; x > -90; x -= 0.00037) {
    const float f = static_cast<float>(x);
    const double exact = f < kExpFloor ? 0.0 : std::exp(static_cast<double>(f));
    CHECK(std::fabs(exp_nonpositive(f) - exact) <= 2.5e-7 * exact, "x %g", x);
  }
  CHECK(exp_nonpositive(0.0f) == 1.0f);
  CHECK(exp_nonpositive(-0.0f) == 1.0f);
  CHECK(exp_nonpositive(kMasked) == 0.0f);
  CHECK(exp_nonpositive(-FLT_MAX) == 0.0f);
}

void breakers() {
  const std::string texts = "a\nb\nc<<|";
  const std::vector<int64_t> offsets = {0, 2, 2, 4, 5, 6, 8};
  const auto newline = match_breaker(texts, offsets, "\n");
  CHECK(newline.size() == 2 && newline[0].token == 0 && newline[1].token == 2 && newline[1].matched == 1);
  const auto tag = match_breaker(texts, offsets, "<|>");
  CHECK(tag.size() == 2 && tag[0].token == 4 && tag[0].matched == 1 && tag[1].token == 5 && tag[1].matched == 2);
}

void uniform_numbers() {
  Rng rng(5489);
  double sum = 0;
  for (int i = 0; i < 100000; ++i) {
    const double u = rng.uniform();
    CHECK(u >= 0 && u < 1);
    sum += u;
  }
  CHECK(std::fabs(sum / 100000 - 0.5) < 0.005);
}

}  // namespace
}  // namespace gristmill::sampling

int main() {
  using namespace gristmill::sampling;
  random_chains();
  keep_top_agrees();
  exponential_is_accurate();
  breakers();
  uniform_numbers();
  return gristmill::test::failures("sampling");
}
