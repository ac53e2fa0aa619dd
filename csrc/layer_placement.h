// Which layers go to which GPU. The conventions are llama.cpp's: a model of n layers has n + 1 to place, the output
// counting as the last; N of them on GPUs are the last N, the output first of all; several GPUs take consecutive ones
// in proportion. The embedding goes with layer 0. Only numbers in and numbers out: nothing here needs a GPU.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace gristmill {

// Bytes that parts of a model take on a GPU.
struct ModelBytes {
  std::vector<int64_t> layers;  // weights of each
  int64_t embedding = 0, output = 0;
  bool tied = false;  // the output is the embedding's matrix, and lies once where both are on one GPU
  int64_t n_ctx = 0;
  std::function<int64_t(int n_layer, int64_t n_ctx)> cache;
  int64_t work = 0;    // activations and what a device keeps besides, on each GPU
  int64_t logits = 0;  // where the output is
};

struct GpuMemory {
  std::string name;  // "cuda:0 (NVIDIA H200)"
  int64_t free_bytes = 0;
};

struct PlacementRequest {
  std::optional<int> n_gpu_layers;   // of n + 1, more meaning all; nullopt: as many as fit
  std::vector<double> tensor_split;  // by GPU; empty: one GPU where that is enough, else all by free memory
  size_t main_gpu = 0;               // the one that is tried alone
};

struct Placement {
  struct Range {
    size_t gpu;
    int first, last;  // [first, last) of n + 1
  };
  std::vector<Range> ranges;  // ascending; layers before the first are the CPU's, and all of them where there is none
  // Layers on GPUs, the output among them.
  int n_gpu_layers() const { return ranges.empty() ? 0 : ranges.back().last - ranges.front().first; }
};

// Throws DeviceError where the layers that were asked for do not fit: which GPU lacks how much, and which -ngl or
// --ctx-size would fit.
Placement place_layers(const ModelBytes& model, std::span<const GpuMemory> gpus, const PlacementRequest& request);

// Why the last GPU of a placement cannot have one layer more, or, of an empty one, any.
std::string why_not_more(const ModelBytes& model, std::span<const GpuMemory> gpus, const PlacementRequest& request,
                         const Placement& placement);

// The longest context, at most model.n_ctx, with which all layers and the output fit; 0 where none does.
int64_t context_for_all(const ModelBytes& model, std::span<const GpuMemory> gpus, const PlacementRequest& request);

}  // namespace gristmill
