#include "layer_placement.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "core/error.h"

namespace gristmill {
namespace {

std::string in_words(int64_t bytes) {
  char text[32];
  const double mib = double(bytes) / (1 << 20);
  std::snprintf(text, sizeof(text), mib < 100 ? "%.1f MiB" : "%.2f GiB", mib < 100 ? mib : mib / 1024);
  return text;
}

struct Need {
  int64_t weights = 0, cache = 0, work = 0;
  int64_t total() const { return weights + cache + work; }
};

class Planner {
 public:
  Planner(const ModelBytes& model, std::span<const GpuMemory> gpus, const PlacementRequest& request)
      : model_(model), gpus_(gpus), request_(request), n_layer_(int(model.layers.size())) {}

  int most() const { return n_layer_ + 1; }

  Need need(const Placement::Range& r, int64_t n_ctx) const {
    const int last_layer = std::min(r.last, n_layer_);
    const bool embeds = r.first == 0, outputs = r.last > n_layer_;
    Need n{std::accumulate(model_.layers.begin() + r.first, model_.layers.begin() + last_layer, int64_t{0}),
           model_.cache(last_layer - r.first, n_ctx), model_.work};
    if (embeds) n.weights += model_.embedding;
    if (outputs) n.weights += model_.output - (embeds && model_.tied ? model_.embedding : 0);
    if (outputs) n.work += model_.logits;
    return n;
  }

  // The first range that its GPU does not hold, or nullptr.
  const Placement::Range* too_large(const Placement& p, int64_t n_ctx) const {
    for (const Placement::Range& r : p.ranges)
      if (need(r, n_ctx).total() > gpus_[r.gpu].free_bytes) return &r;
    return nullptr;
  }
  bool fits(const Placement& p, int64_t n_ctx) const { return !too_large(p, n_ctx); }

  // The last n of all layers.
  Placement place(int n, int64_t n_ctx) const {
    const int first = most() - n;
    if (n == 0) return {};
    if (request_.tensor_split.empty()) {
      const Placement alone{{{request_.main_gpu, first, most()}}};
      if (gpus_.size() == 1 || fits(alone, n_ctx)) return alone;
    }
    // Layer i of n goes to the GPU whose share of all shares ends beyond i / n.
    std::vector<double> ends(gpus_.size());
    double sum = 0.0;
    for (size_t g = 0; g < gpus_.size(); ++g) {
      if (request_.tensor_split.empty()) {
        sum += double(std::max<int64_t>(gpus_[g].free_bytes - model_.work, 0));
      } else if (g < request_.tensor_split.size()) {
        sum += request_.tensor_split[g];
      }
      ends[g] = sum;
    }
    if (sum <= 0.0) return {{{request_.main_gpu, first, most()}}};
    Placement p;
    for (int i = 0; i < n; ++i) {
      const auto end = std::ranges::upper_bound(ends, sum * i / n);
      const size_t gpu = std::min(size_t(end - ends.begin()), gpus_.size() - 1);
      if (p.ranges.empty() || p.ranges.back().gpu != gpu) p.ranges.push_back({gpu, first + i, first + i});
      p.ranges.back().last = first + i + 1;
    }
    return request_.tensor_split.empty() && !fits(p, n_ctx) ? pack(first, n_ctx).value_or(p) : p;
  }

  // Layers from `first` on, each GPU filled before the next: whatever fits in this order, fits so.
  std::optional<Placement> pack(int first, int64_t n_ctx) const {
    Placement p;
    size_t gpu = 0;
    for (int layer = first; layer < most();) {
      if (gpu == gpus_.size()) return std::nullopt;
      Placement::Range r{gpu, layer, layer};
      while (layer < most() && need({gpu, r.first, layer + 1}, n_ctx).total() <= gpus_[gpu].free_bytes)
        r.last = ++layer;
      if (r.last > r.first) p.ranges.push_back(r);
      ++gpu;
    }
    return p;
  }

  // The most layers, up to n, that fit.
  Placement largest(int n, int64_t n_ctx) const {
    for (; n > 0; --n)
      if (Placement p = place(n, n_ctx); fits(p, n_ctx)) return p;
    return {};
  }

  // Why n layers do not fit.
  std::string lack(int n) const {
    const Placement p = place(n, model_.n_ctx);
    const Placement::Range& r = *too_large(p, model_.n_ctx);
    const GpuMemory& gpu = gpus_[r.gpu];
    const Need wants = need(r, model_.n_ctx);
    return gpu.name + " has " + in_words(gpu.free_bytes) + " free and " + describe(r) + " " + in_words(wants.total()) +
           " (weights " + in_words(wants.weights) + ", cache for " + std::to_string(model_.n_ctx) + " positions " +
           in_words(wants.cache) + ", work space " + in_words(wants.work) +
           "): " + in_words(wants.total() - gpu.free_bytes) + " are missing";
  }

  // The longest context, at most the model's own, with which n layers fit; 0: none.
  int64_t largest_context(int n) const {
    constexpr int64_t kStep = 256;
    int64_t low = 0, high = model_.n_ctx / kStep + 1;  // low fits, high does not, in steps
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (fits(place(n, middle * kStep), middle * kStep) ? low : high) = middle;
    }
    return low * kStep;
  }

  // What would fit instead of n layers.
  std::string advice(int n) const {
    std::vector<std::string> ways;
    if (const int fewer = largest(n - 1, model_.n_ctx).n_gpu_layers(); fewer > 0)
      ways.push_back("-ngl " + std::to_string(fewer));
    if (const int64_t shorter = largest_context(n); shorter > 0)
      ways.push_back("--ctx-size " + std::to_string(shorter));
    if (ways.empty()) return "-ngl 0 runs it on the CPU";
    return ways.front() + (ways.size() > 1 ? " or " + ways.back() : "") + " would fit";
  }

 private:
  std::string describe(const Placement::Range& r) const {
    const int last = std::min(r.last, n_layer_) - 1;
    if (last < r.first) return "the output needs";
    if (r.first == 0 && r.last == most()) return "the model needs";
    const std::string layers = last == r.first ? "layer " + std::to_string(last)
                                               : "layers " + std::to_string(r.first) + " to " + std::to_string(last);
    if (r.last == most()) return layers + " and the output need";
    return layers + (last == r.first ? " needs" : " need");
  }

  const ModelBytes& model_;
  std::span<const GpuMemory> gpus_;
  const PlacementRequest& request_;
  int n_layer_;
};

}  // namespace

Placement place_layers(const ModelBytes& model, std::span<const GpuMemory> gpus, const PlacementRequest& request) {
  const Planner planner(model, gpus, request);
  if (!request.n_gpu_layers) return planner.largest(planner.most(), model.n_ctx);
  const int n = std::clamp(*request.n_gpu_layers, 0, planner.most());
  Placement p = planner.place(n, model.n_ctx);
  if (!planner.fits(p, model.n_ctx)) throw DeviceError("[device] " + planner.lack(n) + "; " + planner.advice(n));
  return p;
}

std::string why_not_more(const ModelBytes& model, std::span<const GpuMemory> gpus, const PlacementRequest& request,
                         const Placement& placement) {
  const Planner planner(model, gpus, request);
  const int n = placement.n_gpu_layers() + 1;
  return n > planner.most() ? std::string() : planner.lack(n);
}

int64_t context_for_all(const ModelBytes& model, std::span<const GpuMemory> gpus, const PlacementRequest& request) {
  const Planner planner(model, gpus, request);
  return planner.largest_context(planner.most());
}

}  // namespace gristmill
