// Which devices run a model: what was asked for, what is there, and which layers fit where.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "models/hyperparameters.h"
#include "models/model_source.h"

namespace gristmill {

struct DeviceRequest {
  // "cpu"; "auto": GPUs where there are any, else the CPU; "cuda": GPUs or an error; "cuda:N", or several with commas:
  // those.
  std::string device = "cpu";
  // Layers on GPUs (layer_placement.h): nullopt, as many as fit; all for more than there are.
  std::optional<int> n_gpu_layers;
  int main_gpu = -1;                 // index of the driver's, among those of `device`; -1: the first of them
  std::vector<double> tensor_split;  // by GPU, in the order of `device`; empty: see PlacementRequest
  int64_t n_ctx = 0;
  KvType type_k = KvType::F16, type_v = KvType::F16;
};

// Layers that are one after the other on a device.
struct DeviceLayers {
  int gpu;           // -1: the CPU
  std::string name;  // "cpu", "cuda:0 (NVIDIA H200)"
  int first, last;   // [first, last) of n_layer + 1, the output being the last
};

struct DeviceChoice {
  std::vector<DeviceLayers> layers;  // all of them, in order
  std::string note;                  // why not, or not all of it, on a GPU that could have been meant
  std::string slow;                  // what of the request is slow on the GPUs that were chosen, and what would not be
  int max_batch = 0;                 // tokens of a pass

  bool on_gpus_only() const { return layers.front().gpu >= 0; }
};

// gpu_batch: tokens of a pass where the whole model is on GPUs, at most; mixed_batch: elsewhere.
// Throws ArgumentError: an impossible request; DeviceError: no such device, or too little memory, with what would fit.
DeviceChoice choose_device(const models::ModelSource& source, const models::Hyperparameters& h, int gpu_batch,
                           int mixed_batch, const DeviceRequest& request);

// The backend of a choice; make_cpu makes the CPU's, where it has layers.
std::unique_ptr<Backend> make_backend(const DeviceChoice& choice,
                                      const std::function<std::unique_ptr<Backend>()>& make_cpu);

}  // namespace gristmill
