#include "device_choice.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"
#include "cuda_library.h"
#include "layer_placement.h"
#include "pipeline_backend.h"

namespace gristmill {
namespace {

// What a device needs beside weights, cache and activations: buffers of the upload, partial sums, the halves of a
// prefill's weights and activations, fragmentation.
constexpr int64_t kSpareBytes = 512 << 20;
constexpr int64_t kLogitRows = 32;  // made at a time

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
  source.for_each_tensor([&](const std::string& name, const formats::FormatInfo& format, int64_t n_rows,
                             int64_t n_cols) {
    const int64_t size = n_rows == 1 ? n_cols * int64_t(sizeof(float)) : entry.matrix_bytes(format.id, n_rows, n_cols);
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
  bytes.logits = kLogitRows * h.n_vocab * int64_t(sizeof(float));
  return bytes;
}

DeviceChoice cpu_choice(const models::Hyperparameters& h, const PassSize& mixed, std::string note) {
  return {{{-1, "cpu", 0, h.n_layer + 1}}, std::move(note), mixed.max_batch};
}

}  // namespace

DeviceChoice choose_device(const models::ModelSource& source, const models::Hyperparameters& h, PassSize on_gpus,
                           PassSize mixed, const DeviceRequest& request) {
  if (request.device == "cpu" || request.n_gpu_layers == 0) return cpu_choice(h, mixed, "");
  const bool automatic = request.device == "auto";
  if (!automatic && !request.device.starts_with("cuda")) refuse_name(request.device);
  const cuda::Entry* entry = cuda::entry();
  if (!entry) {
    if (automatic) return cpu_choice(h, mixed, cuda::why_not());
    throw DeviceError("[device] " + request.device + " is not available: " + cuda::why_not());
  }
  const std::vector<int> indices = gpus_of(request.device, entry->device_count());
  std::vector<GpuMemory> gpus;
  for (const int index : indices) {
    const cuda::DeviceInfo info = entry->device_info(index);
    gpus.push_back({"cuda:" + std::to_string(index) + " (" + info.name + ")", info.free_bytes});
  }
  check_split(request.tensor_split, gpus.size());
  PlacementRequest wanted{request.n_gpu_layers, request.tensor_split, 0};
  if (request.main_gpu >= 0) {
    const auto main = std::ranges::find(indices, request.main_gpu);
    if (main == indices.end())
      throw DeviceError("[device] the main GPU cuda:" + std::to_string(request.main_gpu) + " is not among the " +
                        std::to_string(indices.size()) + " of " + request.device);
    wanted.main_gpu = size_t(main - indices.begin());
  }

  ModelBytes bytes = bytes_of(source, h, *entry, request);
  Placement placement;
  int max_batch = on_gpus.max_batch;
  const int all = h.n_layer + 1;
  // Large passes where everything fits along with their work space, else such as suit the CPU too.
  if (wanted.n_gpu_layers.value_or(all) >= all) {
    bytes.work = on_gpus.activations + kSpareBytes;
    PlacementRequest as_fits = wanted;
    as_fits.n_gpu_layers = std::nullopt;
    placement = place_layers(bytes, gpus, as_fits);
  }
  if (placement.n_gpu_layers() < all) {
    max_batch = mixed.max_batch;
    bytes.work = mixed.activations + kSpareBytes;
    placement = place_layers(bytes, gpus, wanted);
  }

  DeviceChoice choice{{}, "", max_batch};
  const int n = placement.n_gpu_layers();
  if (n < all && !wanted.n_gpu_layers) choice.note = why_not_more(bytes, gpus, wanted, placement);
  if (n == 0 && !automatic) throw DeviceError("[device] " + choice.note + " for one layer; -ngl 0 runs it on the CPU");
  if (n < all) choice.layers.push_back({-1, "cpu", 0, all - n});
  for (const Placement::Range& r : placement.ranges)
    choice.layers.push_back({indices[r.gpu], gpus[r.gpu].name, r.first, r.last});
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
