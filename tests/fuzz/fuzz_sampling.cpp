// Sampler chains over any logits, parameters and histories: a token that may be drawn, a distribution that adds up to
// one, or one of our errors.
#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "core/error.h"
#include "input.h"
#include "sampling/chain.h"
#include "sampling/dry.h"
#include "sampling/mirostat.h"
#include "sampling/penalties.h"
#include "sampling/shaping.h"
#include "sampling/truncation.h"

using namespace gristmill;
using namespace gristmill::sampling;

namespace {

double take_number(fuzz::Input& input) {
  switch (input.below(3)) {
    case 0: return double(input.take<uint8_t>()) / 128;
    case 1: return input.take<float>();
    default: return input.take<double>();
  }
}

int64_t take_count(fuzz::Input& input) { return input.flip() ? int64_t(input.take<int8_t>()) : input.take<int64_t>(); }

SamplerPtr take_sampler(fuzz::Input& input, size_t n_vocab) {
  const auto number = [&] { return take_number(input); };
  const auto keep = [&] { return size_t(input.take<uint8_t>()); };
  switch (input.below(13)) {
    case 0: return std::make_shared<TopK>(take_count(input));
    case 1: return std::make_shared<TopP>(number(), keep());
    case 2: return std::make_shared<MinP>(number(), keep());
    case 3: return std::make_shared<TypicalP>(number(), keep());
    case 4: return std::make_shared<TopNSigma>(number());
    case 5: return std::make_shared<Xtc>(number(), number(), keep());
    case 6: return std::make_shared<Greedy>();
    case 7: return std::make_shared<Temperature>(number(), number(), number());
    case 8: return std::make_shared<Penalties>(take_count(input), float(number()), float(number()), float(number()));
    case 9: return std::make_shared<Mirostat>(number(), number());
    case 10: return std::make_shared<MirostatV2>(number(), number());
    case 11: {
      std::vector<Dry::Breaker> breakers(input.below(3));
      for (Dry::Breaker& b : breakers) {
        b.head = int32_t(input.below(uint32_t(n_vocab)));
        for (uint32_t i = 0, n = input.below(4); i < n; ++i) b.tail.push_back(int32_t(input.below(uint32_t(n_vocab))));
      }
      return std::make_shared<Dry>(float(number()), float(number()), take_count(input), take_count(input), breakers);
    }
    default: {
      std::vector<std::pair<int32_t, float>> biases;
      for (uint32_t i = 0, n = input.below(4); i < n; ++i)
        biases.emplace_back(input.flip() ? int32_t(input.below(uint32_t(n_vocab))) : input.take<int32_t>(), float(number()));
      return std::make_shared<LogitBias>(std::move(biases));
    }
  }
}

std::unique_ptr<float[]> take_logits(fuzz::Input& input, size_t n) {
  auto logits = std::make_unique<float[]>(n);
  const bool any = input.flip();
  for (size_t i = 0; i < n; ++i) logits[i] = any ? input.take<float>() : float(input.take<int8_t>()) / 8;
  return logits;
}

void check(Chain& chain, std::span<const float> logits) {
  Chain twin(chain);
  const Distribution d = chain.distribution(logits);
  fuzz::require(!d.ids.empty() && d.ids.size() == d.probs.size(), "something is left to draw");
  double sum = 0;
  for (size_t i = 0; i < d.ids.size(); ++i) {
    fuzz::require(d.ids[i] >= 0 && size_t(d.ids[i]) < logits.size(), "ids are in the vocabulary");
    fuzz::require(d.probs[i] >= 0 && (i == 0 || d.probs[i] <= d.probs[i - 1]), "most likely first");
    fuzz::require(!std::isinf(logits[size_t(d.ids[i])]), "a masked token stays masked");
    sum += d.probs[i];
  }
  fuzz::require(std::fabs(sum - 1) < 1e-4, "probabilities add up to one");
  const int32_t token = chain.sample(logits);
  fuzz::require(token == twin.sample(logits), "a copy draws the same");
  fuzz::require(token >= 0 && size_t(token) < logits.size(), "the token is in the vocabulary");
  chain.accept(std::span(&token, 1));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Input input(data, size);
  const size_t n_vocab = 1 + input.below(300);
  try {
    if (input.below(8) == 0) {
      const std::string texts = input.text(input.below(64)), breaker = input.text(1 + input.below(8));
      std::vector<int64_t> offsets = {0};
      for (int i = 0; i < 40; ++i)
        offsets.push_back(std::min(int64_t(texts.size()), offsets.back() + int64_t(input.below(6))));
      match_breaker(texts, offsets, breaker);
      return 0;
    }
    std::vector<SamplerPtr> samplers;
    for (uint32_t i = 0, n = input.below(7); i < n; ++i) samplers.push_back(take_sampler(input, n_vocab));
    Chain chain(std::move(samplers), input.take<uint32_t>());
    std::vector<int32_t> history(input.below(64));
    for (int32_t& token : history) token = int32_t(input.below(uint32_t(n_vocab)));
    chain.accept(history);
    for (int step = 0; step < 3; ++step) {
      const auto logits = take_logits(input, n_vocab);
      check(chain, {logits.get(), n_vocab});
    }
  } catch (const Error&) {
  }
  return 0;
}
