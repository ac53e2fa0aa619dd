// The device as a test tells the host code of it. On a real GPU as under emulation it may have fewer multiprocessors
// than it has: then small matrices are enough for blocks that hold several shares of work, for warps that fill their
// places in shared memory again and again, and for sums that several blocks have a part in.
#pragma once

#include "cuda/runtime.h"

namespace gristmill::cuda::test {

inline int told_multiprocessors = 0;  // 0: as many as there are

inline DeviceInfo told_device() {
  DeviceInfo device = device_info(0);
  if (told_multiprocessors > 0) device.multiprocessors = told_multiprocessors;
  return device;
}

}  // namespace gristmill::cuda::test
