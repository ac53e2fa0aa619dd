// The traits that tests choose for the emulated device; a real GPU has its own.
#pragma once

#include <cstdint>

namespace gristmill::cuda::emulation {

struct DeviceTraits {
  int major = 9, minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0, used_bytes = 0;
};

inline DeviceTraits& device_traits() {
  static DeviceTraits traits;
  return traits;
}

}  // namespace gristmill::cuda::emulation
