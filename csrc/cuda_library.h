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

// What the library offers. Both sides are compiled from one tree; kEntryVersion finds a stale file.
struct Entry {
  int version;
  int (*device_count)();
  DeviceInfo (*device_info)(int index);
  std::unique_ptr<Backend> (*make_backend)(int index);
  // Bytes of device memory that a matrix and a cache take.
  int64_t (*matrix_bytes)(formats::TypeId format, int64_t n_rows, int64_t n_cols);
  int64_t (*cache_bytes)(const KvShape& shape);
  // Runs for about `seconds`, twice as long for all of it.
  DeviceLimits (*measure_limits)(int index, double seconds);
};
constexpr int kEntryVersion = 2;
constexpr const char* kEntryName = "gristmill_cuda_entry";

// nullptr where there is no CUDA to use; why_not() then says why, in a few words.
const Entry* entry();
const std::string& why_not();
// Empty where entry() is nullptr.
std::vector<DeviceInfo> devices();

// Takes what a test brings instead of looking for a library; before the first use.
void use_entry(const Entry* entry);

}  // namespace gristmill::cuda
