// The device that the emulation pretends to be; tests change it before they make a back end.
#pragma once

#include <cstdint>

namespace gristmill::cuda::emulation {

struct DeviceTraits {
  int major = 9, minor = 0;
  int multiprocessors = 3;  // few, so that small matrices are shared among blocks
  int64_t memory_bytes = int64_t{1} << 30;
  int64_t used_bytes = 0;
};

DeviceTraits& device_traits();

}  // namespace gristmill::cuda::emulation
