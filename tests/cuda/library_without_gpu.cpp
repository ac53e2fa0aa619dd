// A library as the package opens it, on a machine whose driver is too old for it.
#include "cuda_library.h"

extern "C" __attribute__((visibility("default"))) const gristmill::cuda::Entry* gristmill_cuda_entry() {
  static const gristmill::cuda::Entry entry = [] {
    gristmill::cuda::Entry e{};
    e.version = gristmill::cuda::kEntryVersion;
    e.device_count = [](std::string* why) {
      if (why) *why = "the driver is too old";
      return 0;
    };
    return e;
  }();
  return &entry;
}
