#include "device_choice.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "cuda_library.h"
#include "layer_placement.h"
#include "models/blocks.h"
#include "pipeline_backend.h"

namespace gristmill {
namespace {

// What a device needs and nobody counts: the kernels' code, which the driver loads as they are used, graphs,
// fragmentation.
constexpr int64_t kSpareBytes = 256 << 20;
// Sequences that decode together without more memory than was counted, but for their caches.
constexpr int kTogether = 32;

int64_t float_bytes(int64_t n) { return cuda::allocated_bytes(n * int64_t(sizeof(float))); }

[[noreturn]] void refuse_name(const std::string& device) {
  throw ArgumentError("[device] name, expected auto, cpu, cuda, or cuda:N with others after commas, got " + device);
}

// The GPUs that a name stands for, by the driver's numbers.
std::vector<int> gpus_of(const std::string& device, int n_devices) {
  std::vector<int> found;
  if (device == "auto" || device == "cuda") {
    for (int i = 0; i < n_devices; ++i) found.push_back(i);
    return found;
  }
  for (size_t begin = 0; begin <= device.size();) {
    const size_t end = std::min(device.find(',', begin), device.size());
    const std::string one = device.substr(begin, end - begin);
    int index = 0;
    const char* stop = one.data() + one.size();
    if (!one.starts_with("cuda:")) refuse_name(device);
    const auto [parsed, error] = std::from_chars(one.data() + 5, stop, index);
    if (error != std::errc() || parsed != stop || index < 0) refuse_name(device);
    if (index >= n_devices)
      throw DeviceError("[device] " + one + " is not there: there " +
                        (n_devices == 1 ? "is 1 GPU" : "are " + std::to_string(n_devices) + " GPUs"));
    if (std::ranges::find(found, index) != found.end()) throw ArgumentError("[device] " + one + " is given twice");
    found.push_back(index);
    begin = end + 1;
  }
  return found;
}

void check_split(const std::vector<double>& split, size_t n_gpus) {
  if (split.empty()) return;
  if (split.size() > n_gpus)
    throw ArgumentError("[device] tensor split, expected at most " + std::to_string(n_gpus) +
                        " shares, one a GPU, got " + std::to_string(split.size()));
  double sum = 0.0;
  for (const double share : split) {
    if (!(share >= 0.0) || !std::isfinite(share))
      throw ArgumentError("[device] tensor split, expected shares of at least 0, got " + std::to_string(share));
    sum += share;
  }
  if (sum == 0.0) throw ArgumentError("[device] tensor split, expected a share above 0, got none");
}

ModelBytes bytes_of(const models::ModelSource& source, const models::Hyperparameters& h, const cuda::Entry& entry,
                    const DeviceRequest& request) {
  ModelBytes bytes;
  bytes.layers.resize(size_t(h.n_layer));
  bytes.tied = true;
  source.for_each_tensor(
      [&](const std::string& name, const formats::FormatInfo& format, int64_t n_rows, int64_t n_cols) {
        const int64_t size = n_rows == 1 ? float_bytes(n_cols) : entry.matrix_bytes(format.id, n_rows, n_cols);
        int layer = -1;
        if (name.starts_with("blk.")) std::from_chars(name.data() + 4, name.data() + name.size(), layer);
        if (layer >= 0 && layer < h.n_layer) bytes.layers[size_t(layer)] += size;
        if (name == "token_embd.weight") bytes.embedding = size;
        if (name.starts_with("output")) bytes.output += size;  // and output_norm
        if (name == "output.weight") bytes.tied = false;
      });
  if (bytes.tied) bytes.output += bytes.embedding;
  bytes.n_ctx = request.n_ctx > 0 ? request.n_ctx : h.n_ctx_train;
  bytes.cache = [&entry, &h, &request](int n_layer, int64_t n_ctx) {
    return entry.cache_bytes({n_layer, h.n_head_kv, h.head_dim_k, h.head_dim_v, n_ctx, request.type_k, request.type_v});
  };
  bytes.logits = float_bytes(models::kHeadRows * h.n_embd) + float_bytes(models::kHeadRows * h.n_vocab);
  return bytes;
}

// Tokens of a pass where the whole model is on GPUs, and elsewhere.
struct BatchSizes {
  int on_gpus, mixed;
};

// A placement, and what it was made from.
struct Plan {
  std::vector<int> indices;
  std::vector<GpuMemory> gpus;
  ModelBytes bytes;
  Placement placement;
  int max_batch;
};

class Chooser {
 public:
  Chooser(const models::ModelSource& source, const models::Hyperparameters& h, const cuda::Entry& entry,
          const DeviceRequest& request, BatchSizes batch)
      : h_(h), entry_(entry), request_(request), batch_(batch), model_(bytes_of(source, h, entry, request)) {}

  Plan place(const std::vector<int>& indices, const PlacementRequest& wanted) const {
    const std::vector<cuda::DeviceInfo> devices = ask(indices);
    Plan plan = make_plan(indices, devices, batch_.on_gpus);
    const int all = h_.n_layer + 1;
    // Large passes where everything fits along with their work space, else such as suit the CPU too.
    if (wanted.n_gpu_layers.value_or(all) >= all) {
      PlacementRequest as_fits = wanted;
      as_fits.n_gpu_layers = std::nullopt;
      plan.placement = place_layers(plan.bytes, plan.gpus, as_fits);
    }
    if (plan.placement.n_gpu_layers() == all) return plan;
    plan = make_plan(indices, devices, batch_.mixed);
    plan.placement = place_layers(plan.bytes, plan.gpus, wanted);
    return plan;
  }

  // All layers that are wanted on one GPU, where it holds them.
  std::optional<Plan> place_on_one(int index, std::optional<int> n_layers) const {
    Plan plan = place({index}, {});
    const int n = std::min(n_layers.value_or(h_.n_layer + 1), h_.n_layer + 1), fitting = plan.placement.n_gpu_layers();
    if (fitting < n) return std::nullopt;
    return fitting == n ? plan : place({index}, {n, {}, 0});
  }

 private:
  std::vector<cuda::DeviceInfo> ask(const std::vector<int>& indices) const {
    std::vector<cuda::DeviceInfo> devices;
    for (const int index : indices) {
      devices.push_back(cuda::device_or_error(entry_, index));
      // Meant by its number, it is an error; else one more GPU without free memory.
      if (!devices.back().unusable.empty() && request_.device.starts_with("cuda:"))
        throw DeviceError("[device] cuda:" + std::to_string(index) + " cannot be used: " + devices.back().name);
    }
    return devices;
  }

  Plan make_plan(const std::vector<int>& indices, const std::vector<cuda::DeviceInfo>& devices, int max_batch) const {
    Plan plan{indices, {}, model_, {}, max_batch};
    for (const cuda::DeviceInfo& d : devices) {
      plan.gpus.push_back({"cuda:" + std::to_string(d.index) + " (" + d.name + ")", d.free_bytes});
      if (d.free_bytes > 0) plan.bytes.work = std::max(plan.bytes.work, work_bytes(d, max_batch));
    }
    return plan;
  }

  // What a stage takes beside weights, cache and logits.
  int64_t work_bytes(const cuda::DeviceInfo& device, int max_batch) const {
    int64_t bytes = kSpareBytes;
    for (const int64_t width : models::activation_widths(h_)) bytes += float_bytes(max_batch * width);
    const KvShape cache{1, h_.n_head_kv, h_.head_dim_k, h_.head_dim_v, 1, request_.type_k, request_.type_v};
    return bytes +
           entry_.pass_bytes(
               {h_.n_embd, h_.n_ff, h_.n_vocab, cache, h_.n_head, max_batch, kTogether, models::kHeadRows}, device);
  }

  const models::Hyperparameters& h_;
  const cuda::Entry& entry_;
  const DeviceRequest& request_;
  BatchSizes batch_;
  ModelBytes model_;  // without work space
};

std::string why_slow(const KvShape& cache) {
  const auto name = [](KvType type) { return type == KvType::F32 ? "f32" : type == KvType::F16 ? "f16" : "q8_0"; };
  return std::string("attention over keys of ") + name(cache.type_k) + " in heads of " +
         std::to_string(cache.head_dim_k) + " and values of " + name(cache.type_v) + " in heads of " +
         std::to_string(cache.head_dim_v) +
         " is slow on a GPU; fast are f16 or q8_0 for both (cache_type_k, cache_type_v) in heads of 64 or 128";
}

DeviceChoice cpu_choice(const models::Hyperparameters& h, int max_batch, std::string note) {
  return {{{-1, "cpu", 0, h.n_layer + 1}}, std::move(note), "", max_batch};
}

}  // namespace

DeviceChoice choose_device(const models::ModelSource& source, const models::Hyperparameters& h, int gpu_batch,
                           int mixed_batch, const DeviceRequest& request) {
  if (request.device == "cpu" || request.n_gpu_layers == 0) return cpu_choice(h, mixed_batch, "");
  const bool automatic = request.device == "auto";
  if (!automatic && !request.device.starts_with("cuda")) refuse_name(request.device);
  const cuda::Entry* entry = cuda::entry();
  if (!entry) {
    if (automatic) return cpu_choice(h, mixed_batch, cuda::why_not());
    throw DeviceError("[device] " + request.device + " is not available: " + cuda::why_not());
  }
  const std::vector<int> indices = gpus_of(request.device, entry->device_count(nullptr));
  check_split(request.tensor_split, indices.size());
  PlacementRequest wanted{request.n_gpu_layers, request.tensor_split, 0};
  if (request.main_gpu >= 0) {
    const auto main = std::ranges::find(indices, request.main_gpu);
    if (main == indices.end())
      throw DeviceError("[device] the main GPU cuda:" + std::to_string(request.main_gpu) + " is not among the " +
                        std::to_string(indices.size()) + " of " + request.device);
    wanted.main_gpu = size_t(main - indices.begin());
  }

  const Chooser chooser(source, h, *entry, request, {gpu_batch, mixed_batch});
  const int all = h.n_layer + 1;
  std::optional<Plan> plan;
  // The main GPU alone first: asking a GPU for its memory takes some of it (a context), for as long as the process
  // runs.
  if (indices.size() > 1 && request.tensor_split.empty())
    plan = chooser.place_on_one(indices[wanted.main_gpu], wanted.n_gpu_layers);
  if (!plan) plan = chooser.place(indices, wanted);

  DeviceChoice choice{{}, "", "", plan->max_batch};
  const int n = plan->placement.n_gpu_layers();
  if (n < all && !wanted.n_gpu_layers) {
    choice.note = why_not_more(plan->bytes, plan->gpus, wanted, plan->placement);
    if (n == 0 && !automatic) choice.note += " for one layer";
    if (const int64_t context = context_for_all(plan->bytes, plan->gpus, wanted); context > 0)
      choice.note += "; with --ctx-size " + std::to_string(context) + " all layers would fit";
  }
  if (n == 0 && !automatic) throw DeviceError("[device] " + choice.note + "; -ngl 0 runs it on the CPU");
  if (n < all) choice.layers.push_back({-1, "cpu", 0, all - n});
  for (const Placement::Range& r : plan->placement.ranges)
    choice.layers.push_back({plan->indices[r.gpu], plan->gpus[r.gpu].name, r.first, r.last});
  const KvShape cache{1, h.n_head_kv, h.head_dim_k, h.head_dim_v, 1, request.type_k, request.type_v};
  if (n > 1 && !entry->fast_attention(cache)) choice.slow = why_slow(cache);  // the output alone attends to nothing
  return choice;
}

std::unique_ptr<Backend> make_backend(const DeviceChoice& choice,
                                      const std::function<std::unique_ptr<Backend>()>& make_cpu) {
  std::vector<PipelineBackend::Stage> stages;
  for (const DeviceLayers& l : choice.layers)
    stages.push_back({l.gpu < 0 ? make_cpu() : cuda::entry()->make_backend(l.gpu), l.first});
  if (stages.size() == 1) return std::move(stages.front().backend);
  return std::make_unique<PipelineBackend>(std::move(stages));
}

}  // namespace gristmill
