// The devices that the emulation pretends to be; tests change them before they make a back end. A kernel or a copy on a
// stream of another device than the current one ends the process and, under AddressSanitizer, so does an access to
// memory of another device.
#pragma once

#include <cstdint>

namespace gristmill::cuda::emulation {

struct DeviceTraits {
  int major = 9, minor = 0;
  int multiprocessors = 3;  // few, so that small matrices are shared among blocks
  int64_t memory_bytes = int64_t{1} << 30;
  int64_t used_bytes = 0, peak_bytes = 0;  // as the driver counts them (allocated_bytes)
  bool fails = false;                      // whether asking for it fails
  int times_asked = 0;                     // for its properties
  bool has_code = true;                    // whether the library was compiled for it
  bool has_context = false;                // whether it was ever made the current one
  int launches = 0;                        // so far
  int launches_left = -1;                  // before one fails, once; -1: none does
  // What fails of graphs.
  bool no_capture = false, no_graph = false, no_graph_launch = false;
};

DeviceTraits& device_traits(int index = 0);
// Devices that there are, one at first; those that go must hold nothing.
void set_device_count(int n);

}  // namespace gristmill::cuda::emulation
