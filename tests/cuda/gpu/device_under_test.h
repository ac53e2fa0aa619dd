// What tests say to the device they run on, for a build on a real GPU, which has its own order of threads and its own
// traits.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "cuda/runtime.h"

namespace gristmill::cuda::emulation {

// What every test begins with.
inline void set_seed(uint64_t) {
  if (device_count() > 0) return;
  std::fprintf(stderr, "there is no GPU to run this test on\n");
  std::exit(1);
}
inline void set_device_count(int) {}

struct DeviceTraits {
  int major = 0, minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0, used_bytes = 0, peak_bytes = 0;
  bool fails = false;
  int times_asked = 0;
  bool has_code = true, has_context = false;
  int launches = 0, launches_left = -1;
  bool no_capture = false, no_graph = false, no_graph_launch = false;
};

inline DeviceTraits& device_traits(int = 0) {
  static DeviceTraits traits;
  return traits;
}

}  // namespace gristmill::cuda::emulation
