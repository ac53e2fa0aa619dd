#include "cuda_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "core/error.h"

namespace gristmill::cuda {
namespace {

struct Library {
  const Entry* entry = nullptr;
  std::string why_not;
};

Library open_library(const std::filesystem::path& path) {
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) return {nullptr, dlerror()};
  const auto get = reinterpret_cast<const Entry* (*)()>(dlsym(handle, kEntryName));
  if (!get || get()->version != kEntryVersion) return {nullptr, path.string() + " is of another version"};
  std::string why;
  if (get()->device_count(&why) == 0)
    return {nullptr, "the NVIDIA driver finds no GPU" + (why.empty() ? "" : ": " + why)};
  return {get(), ""};
}

Library load() {
  if (const char* other = std::getenv("GRISTMILL_CUDA_LIBRARY"); other && *other) return open_library(other);
  Dl_info self{};
  if (dladdr(reinterpret_cast<const void*>(&why_not), &self) == 0 || !self.dli_fname)
    return {nullptr, "the folder of the extension module is unknown"};
  const std::filesystem::path path = std::filesystem::path(self.dli_fname).parent_path() / "_cuda.so";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return {nullptr, "this build has no CUDA back end"};
  // The driver first, so that a machine without one is told apart from a broken build.
  if (!dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL)) return {nullptr, "no NVIDIA driver (libcuda.so.1) was found"};
  return open_library(path);
}

const Entry* brought = nullptr;

const Library& library() {
  static const Library loaded = brought ? Library{brought, ""} : load();
  return loaded;
}

}  // namespace

const Entry* entry() { return library().entry; }
const std::string& why_not() { return library().why_not; }

void use_entry(const Entry* entry) { brought = entry; }

DeviceInfo device_or_error(const Entry& entry, int index) {
  try {
    DeviceInfo info = entry.device_info(index);
    if (!info.unusable.empty()) info.name += ": " + info.unusable;
    return info;
  } catch (const DeviceError& e) {
    DeviceInfo none;
    none.index = index;
    none.name = e.what();
    return none;
  }
}

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> all;
  const Entry* e = entry();
  for (int i = 0; e && i < e->device_count(nullptr); ++i) all.push_back(device_or_error(*e, i));
  return all;
}

}  // namespace gristmill::cuda
