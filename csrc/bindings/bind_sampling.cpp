// The sampler chain. Samplers are opaque values made by factory functions; their parameters are checked in Python,
// where each is documented (gristmill/samplers.py).
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "core/error.h"
#include "sampling/chain.h"
#include "sampling/dry.h"
#include "sampling/mirostat.h"
#include "sampling/penalties.h"
#include "sampling/shaping.h"
#include "sampling/truncation.h"

namespace nb = nanobind;

namespace gristmill::bindings {
namespace {

using namespace sampling;

using Logits = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tokens = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Offsets = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename Array>
std::span<const typename Array::Scalar> span_of(const Array& array) {
  return {array.data(), array.size()};
}

template <typename T>
nb::object to_numpy(std::vector<T> values) {
  auto* owned = new std::vector<T>(std::move(values));
  const nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(owned->data(), {owned->size()}, owner));
}

// A sampler written in Python: hands it the logits of the whole vocabulary, -inf for removed tokens, to change in
// place.
class Callback final : public Sampler {
 public:
  explicit Callback(nb::callable apply) : apply_(std::move(apply)) {}

  void apply(Candidates& candidates, Step&) const override {
    const nb::gil_scoped_acquire gil;
    std::vector<float> logits(candidates.n_vocab(), kMasked);
    for (size_t i = 0; i < candidates.size(); ++i) logits[static_cast<size_t>(candidates.id(i))] = candidates.logit(i);
    nb::object array = to_numpy(std::move(logits));
    apply_(array);
    candidates.replace(span_of(nb::cast<Logits>(array)));
  }

 private:
  nb::callable apply_;
};

// A chain may be used from any thread, but by one at a time; this also catches a custom sampler that calls its own
// chain.
class ChainObject {
 public:
  ChainObject(std::vector<SamplerPtr> samplers, uint32_t seed) : chain_(std::move(samplers), seed) {}
  explicit ChainObject(const Chain& chain) : chain_(chain) {}

  template <typename F>
  auto with(F&& f) {
    if (busy_.exchange(true)) throw Error("[sampling] chain is in use, expected one call at a time, got a second one");
    struct Release {
      std::atomic<bool>& busy;
      ~Release() { busy = false; }
    } release{busy_};
    return f(chain_);
  }

 private:
  Chain chain_;
  std::atomic<bool> busy_ = false;
};

}  // namespace

void bind_sampling(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler");

  m.def("sampler_top_k", [](int64_t k) -> SamplerPtr { return std::make_shared<TopK>(k); });
  m.def("sampler_top_p", [](double p, size_t min_keep) -> SamplerPtr { return std::make_shared<TopP>(p, min_keep); });
  m.def("sampler_min_p", [](double p, size_t min_keep) -> SamplerPtr { return std::make_shared<MinP>(p, min_keep); });
  m.def("sampler_typical_p",
        [](double p, size_t min_keep) -> SamplerPtr { return std::make_shared<TypicalP>(p, min_keep); });
  m.def("sampler_top_n_sigma", [](double n) -> SamplerPtr { return std::make_shared<TopNSigma>(n); });
  m.def("sampler_xtc", [](double probability, double threshold, size_t min_keep) -> SamplerPtr {
    return std::make_shared<Xtc>(probability, threshold, min_keep);
  });
  m.def("sampler_greedy", []() -> SamplerPtr { return std::make_shared<Greedy>(); });
  m.def("sampler_temperature", [](double temp, double range, double exponent) -> SamplerPtr {
    return std::make_shared<Temperature>(temp, range, exponent);
  });
  m.def("sampler_logit_bias", [](std::vector<std::pair<int32_t, float>> biases) -> SamplerPtr {
    return std::make_shared<LogitBias>(std::move(biases));
  });
  m.def("sampler_penalties", [](int64_t last_n, float repeat, float frequency, float presence) -> SamplerPtr {
    return std::make_shared<Penalties>(last_n, repeat, frequency, presence);
  });
  m.def("sampler_dry",
        [](float multiplier, float base, int64_t allowed_length, int64_t last_n,
           std::vector<std::pair<int32_t, std::vector<int32_t>>> breakers) -> SamplerPtr {
          std::vector<Dry::Breaker> converted;
          for (auto& [head, tail] : breakers) converted.push_back({head, std::move(tail)});
          return std::make_shared<Dry>(multiplier, base, allowed_length, last_n, converted);
        });
  m.def("sampler_mirostat", [](double tau, double eta) -> SamplerPtr { return std::make_shared<Mirostat>(tau, eta); });
  m.def("sampler_mirostat_v2",
        [](double tau, double eta) -> SamplerPtr { return std::make_shared<MirostatV2>(tau, eta); });
  m.def("sampler_custom",
        [](nb::callable apply) -> SamplerPtr { return std::make_shared<Callback>(std::move(apply)); });

  m.def("dry_match_breaker", [](nb::bytes texts, const Offsets& offsets, nb::bytes breaker) {
    const std::span<const int64_t> ends = span_of(offsets);
    for (size_t i = 0; i < ends.size(); ++i) {
      if (ends[i] < (i == 0 ? 0 : ends[i - 1]) || static_cast<size_t>(ends[i]) > texts.size()) {
        throw ArgumentError("[dry] offsets must ascend within the texts");
      }
    }
    if (breaker.size() == 0) throw ArgumentError("[dry] a sequence breaker is empty");
    std::vector<std::pair<int32_t, uint32_t>> result;
    for (const BreakerMatch& match :
         match_breaker({texts.c_str(), texts.size()}, ends, {breaker.c_str(), breaker.size()})) {
      result.emplace_back(match.token, match.matched);
    }
    return result;
  });

  nb::class_<ChainObject>(m, "Chain")
      .def(nb::init<std::vector<SamplerPtr>, uint32_t>())
      .def("sample",
           [](ChainObject& self, const Logits& logits) {
             const nb::gil_scoped_release no_gil;
             return self.with([&](Chain& chain) { return chain.sample(span_of(logits)); });
           })
      .def("n_needed", [](ChainObject& self) { return self.with([](Chain& chain) { return chain.n_needed(); }); })
      .def("sample_top",
           [](ChainObject& self, const Tokens& ids, const Logits& logits, size_t n_vocab) {
             const nb::gil_scoped_release no_gil;
             return self.with([&](Chain& chain) { return chain.sample(span_of(ids), span_of(logits), n_vocab); });
           })
      .def(
          "distribution",
          [](ChainObject& self, const Logits& logits, const std::optional<Tokens>& history) {
            Distribution result;
            {
              const nb::gil_scoped_release no_gil;
              std::optional<std::span<const int32_t>> tokens;
              if (history) tokens = span_of(*history);
              result = self.with([&](Chain& chain) { return chain.distribution(span_of(logits), tokens); });
            }
            return nb::make_tuple(to_numpy(std::move(result.ids)), to_numpy(std::move(result.probs)));
          },
          nb::arg("logits"), nb::arg("history").none())
      .def("accept",
           [](ChainObject& self, int32_t token) { self.with([&](Chain& chain) { chain.accept({&token, 1}); }); })
      .def("accept_many", [](ChainObject& self,
                             const Tokens& tokens) { self.with([&](Chain& chain) { chain.accept(span_of(tokens)); }); })
      .def("expect_n_vocab",
           [](ChainObject& self, size_t n) { self.with([&](Chain& chain) { chain.expect_n_vocab(n); }); })
      .def("reset", [](ChainObject& self, uint32_t seed) { self.with([&](Chain& chain) { chain.reset(seed); }); })
      .def("replace",
           [](ChainObject& self, size_t index, SamplerPtr sampler) {
             self.with([&](Chain& chain) { chain.replace(index, std::move(sampler)); });
           })
      .def("clone", [](ChainObject& self) { return self.with([](Chain& chain) { return new ChainObject(chain); }); })
      .def("history", [](ChainObject& self) {
        return to_numpy(self.with(
            [](Chain& chain) { return std::vector<int32_t>(chain.history().begin(), chain.history().end()); }));
      });
}

}  // namespace gristmill::bindings
