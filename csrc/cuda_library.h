// The CUDA back end as the rest of the program sees it: a library beside the extension module that is loaded on first
// use, and only where NVIDIA's driver is. GRISTMILL_CUDA_LIBRARY names another file to load instead, driver or not: the
// emulated back end of the tests. Nothing here needs CUDA to compile, link or start.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.h"
#include "cuda/limits.h"
#include "cuda/runtime.h"

namespace gristmill::cuda {

// What decides how much memory a backend's passes take.
struct PassShape {
  int64_t n_embd, n_ff, n_vocab;
  KvShape cache;  // of one sequence
  int n_head;
  int n_rows;         // of one sequence's prefill, at most
  int n_together;     // sequences that decode together,
  int n_output_rows;  // and rows whose logits are made at once, at most
};

// What the library offers. Both sides are compiled from one tree; kEntryVersion finds a stale file.
struct Entry {
  int version;
  int (*device_count)(std::string* why);
  DeviceInfo (*device_info)(int index);
  std::unique_ptr<Backend> (*make_backend)(int index);
  // Bytes of device memory that a matrix and a cache take, and at most what the backend itself does (not the
  // activations and logits that it allocates for others).
  int64_t (*matrix_bytes)(formats::TypeId format, int64_t n_rows, int64_t n_cols);
  int64_t (*cache_bytes)(const KvShape& shape);
  // Whether attention over such a cache has fast kernels.
  bool (*fast_attention)(const KvShape& shape);
  int64_t (*pass_bytes)(const PassShape& shape, const DeviceInfo& device);
  // Runs for about `seconds`, twice as long for all of it.
  DeviceLimits (*measure_limits)(int index, double seconds);
};
constexpr int kEntryVersion = 4;
constexpr const char* kEntryName = "gristmill_cuda_entry";

// nullptr where there is no CUDA to use; why_not() then says why, in a few words.
const Entry* entry();
const std::string& why_not();
// Empty where entry() is nullptr. A GPU that cannot be asked has no memory, and its error as its name; one that is
// unusable has none free, and the reason behind its name.
std::vector<DeviceInfo> devices();
DeviceInfo device_or_error(const Entry& entry, int index);

// Takes what a test brings instead of looking for a library; before the first use.
void use_entry(const Entry* entry);

}  // namespace gristmill::cuda
