// What tests say to the emulation, for a build on a real GPU: the hardware has its own order of threads.
#pragma once

#include <cstdint>

namespace gristmill::cuda::emulation {

inline void set_seed(uint64_t) {}

}  // namespace gristmill::cuda::emulation
