// The CUDA back end as the rest of the program sees it: a library beside the extension module that is loaded on first
// use, and only where NVIDIA's driver is. Nothing here needs CUDA to compile, link or start.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.h"
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
};
constexpr int kEntryVersion = 1;
constexpr const char* kEntryName = "gristmill_cuda_entry";

// nullptr where there is no CUDA to use; why_not() then says why, in a few words.
const Entry* entry();
const std::string& why_not();
// Empty where entry() is nullptr.
std::vector<DeviceInfo> devices();

}  // namespace gristmill::cuda
