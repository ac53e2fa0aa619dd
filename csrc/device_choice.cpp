#include "device_choice.h"

#include <charconv>
#include <cstdio>

#include "core/error.h"
#include "cuda_library.h"

namespace gristmill {
namespace {

// What a device needs beside weights, cache and activations: buffers of the upload, partial sums, fragmentation.
constexpr int64_t kSpareBytes = 256 << 20;

std::string gib(int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.2f GiB", double(bytes) / (1 << 30));
  return text;
}

// "cuda" is device 0.
int device_index(const std::string& device, size_t n_devices) {
  int index = 0;
  if (device.size() > 4) {
    const char* end = device.data() + device.size();
    const auto [stop, error] = std::from_chars(device.data() + 5, end, index);
    if (device[4] != ':' || error != std::errc() || stop != end || index < 0)
      throw ArgumentError("[device] name, expected auto, cpu, cuda or cuda:N, got " + device);
  }
  if (size_t(index) >= n_devices)
    throw DeviceError("[device] " + device + " is not there: there are " + std::to_string(n_devices) + " GPUs");
  return index;
}

struct Need {
  int64_t weights, cache, work, total;
};

// Why a device with `free` bytes does not hold it, and what would.
std::string too_little(const cuda::DeviceInfo& device, const Need& need, KvShape shape, const cuda::Entry& entry) {
  std::string text = device.name + " has " + gib(device.free_bytes) + " free and the model needs " + gib(need.total) +
                     " (weights " + gib(need.weights) + ", cache for " + std::to_string(shape.n_ctx) + " positions " +
                     gib(need.cache) + "): " + gib(need.total - device.free_bytes) + " are missing; ";
  const int64_t left = device.free_bytes - (need.total - need.cache);
  int64_t fits = 0;
  for (int64_t step = int64_t{1} << 30; step >= 256; step /= 2) {
    shape.n_ctx = fits + step;
    if (left > 0 && shape.n_ctx <= (int64_t{1} << 31) && entry.cache_bytes(shape) <= left) fits += step;
  }
  return text + (fits > 0 ? "--ctx-size " + std::to_string(fits) + " would fit" : "-ngl 0 runs it on the CPU");
}

}  // namespace

DeviceChoice choose_device(const models::ModelSource& source, const models::Hyperparameters& h, int64_t work_bytes,
                           const DeviceRequest& request) {
  if (request.device == "cpu") return {};
  const bool automatic = request.device == "auto";
  if (!automatic && !request.device.starts_with("cuda"))
    throw ArgumentError("[device] name, expected auto, cpu, cuda or cuda:N, got " + request.device);
  const cuda::Entry* entry = cuda::entry();
  if (!entry) {
    if (automatic) return {nullptr, "cpu", cuda::why_not()};
    throw DeviceError("[device] " + request.device + " is not available: " + cuda::why_not());
  }
  const int index = automatic ? 0 : device_index(request.device, size_t(entry->device_count()));
  const cuda::DeviceInfo device = entry->device_info(index);
  const KvShape shape{
      h.n_layer,      h.n_head_kv,   h.head_dim_k, h.head_dim_v, request.n_ctx > 0 ? request.n_ctx : h.n_ctx_train,
      request.type_k, request.type_v};
  Need need{0, entry->cache_bytes(shape), work_bytes + kSpareBytes, 0};
  source.for_each_tensor([&](const formats::FormatInfo& format, int64_t n_rows, int64_t n_cols) {
    need.weights += n_rows == 1 ? n_cols * 4 : entry->matrix_bytes(format.id, n_rows, n_cols);
  });
  need.total = need.weights + need.cache + need.work;
  if (need.total > device.free_bytes) {
    const std::string why = too_little(device, need, shape, *entry);
    if (automatic) return {nullptr, "cpu", why};
    throw DeviceError("[device] " + why);
  }
  return {entry->make_backend(index), "cuda:" + std::to_string(index) + " (" + device.name + ")", ""};
}

}  // namespace gristmill
