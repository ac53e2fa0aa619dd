#include "cuda_library.h"

#include <dlfcn.h>

#include <filesystem>

#include "core/error.h"

namespace gristmill::cuda {
namespace {

struct Library {
  const Entry* entry = nullptr;
  std::string why_not;
};

Library load() {
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&why_not), &self) == 0 || !self.dli_fname)
    return {nullptr, "the folder of the extension module is unknown"};
  const std::filesystem::path path = std::filesystem::path(self.dli_fname).parent_path() / "_cuda.so";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return {nullptr, "this build has no CUDA back end"};
  // The driver first, so that a machine without one is told apart from a broken build.
  if (!dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL)) return {nullptr, "no NVIDIA driver (libcuda.so.1) was found"};
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return {nullptr, dlerror()};
  const auto get = reinterpret_cast<const Entry* (*)()>(dlsym(handle, kEntryName));
  if (!get || get()->version != kEntryVersion) return {nullptr, path.string() + " is of another version"};
  if (get()->device_count() == 0) return {nullptr, "the NVIDIA driver finds no GPU, or is too old for CUDA 13"};
  return {get(), ""};
}

const Library& library() {
  static const Library loaded = load();
  return loaded;
}

}  // namespace

const Entry* entry() { return library().entry; }
const std::string& why_not() { return library().why_not; }

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> all;
  if (const Entry* e = entry())
    for (int i = 0; i < e->device_count(); ++i) all.push_back(e->device_info(i));
  return all;
}

}  // namespace gristmill::cuda
